"""What loading a stranger's files may raise, and the one line that it becomes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hrpo.common.errors import InputError

AGAIN = "copy the folder again, or take another"
LOADING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@contextlib.contextmanager
def loading(path: str) -> Iterator[None]:
    """Turn what transformers raises into one line."""
    try:
        yield
    except LOADING_ERRORS as error:
        if "trust_remote_code=True" in str(error):
            raise InputError(
                "model.name",
                f"{path} comes with code of its own",
                "read it, then set model.trust_remote_code to true (--trust_remote_code)",
            ) from error
        what = f"cannot load {path}" if Path(path).is_dir() else f"{path} is no folder here, and none on the Hub"
        fix = "it needs config.json and whole *.safetensors" if Path(path).is_dir() else "mend the name"
        raise InputError("model.name", f"{what}: {on_one_line(error).rstrip('.'):.300}", fix) from error


def on_one_line(error: BaseException) -> str:
    """Return an error's text, its line breaks turned into spaces."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().split("\n")[0]
