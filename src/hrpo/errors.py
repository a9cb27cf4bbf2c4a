"""The one error that the command line turns into a line of text."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the field and the fix; `hrpo` exits with 2."""


@contextlib.contextmanager
def model_named_by(option: str) -> Iterator[None]:
    """Let errors about a model name the command's option instead of the field of a training's settings."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("model.name:", f"{option}:")) from error
