"""The errors that the command line turns into a few lines of text."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the field and the fix; `hrpo` exits with 2."""


class StoppedError(RuntimeError):
    """A run ended itself and saved what it had. The message says why and what to change; `hrpo` exits with 3."""


@contextlib.contextmanager
def model_named_by(option: str) -> Iterator[None]:
    """Let errors about a model name the command's option instead of the field of a training's settings."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("model.name:", f"{option}:")) from error
