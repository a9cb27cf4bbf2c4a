"""The errors that the command line turns into a few lines of text."""

import contextlib
from collections.abc import Iterator, Mapping


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the field and the fix; `hrpo` exits with 2."""


class StoppedError(RuntimeError):
    """A run ended itself; its checkpoints are whole. The message says why and what to change; `hrpo` exits with 3."""


class OutputError(StoppedError):
    """Standard output takes nothing any more; `__cause__` is the system's error. `hrpo` exits with 3."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to end by a signal, and has saved what it had; `hrpo` exits with 4."""


@contextlib.contextmanager
def named_by(options: Mapping[str, str]) -> Iterator[None]:
    """Let errors name a command's options instead of the fields of a training's settings: field -> option."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for field, option in options.items():
            message = message.replace(f"{field}:", f"{option}:")
        raise InputError(message) from error


@contextlib.contextmanager
def of_field(field: str) -> Iterator[None]:
    """Let errors that name a file begin with the field that it comes from; those that name a task's field stay."""
    try:
        yield
    except InputError as error:
        if str(error).startswith("task."):
            raise
        raise InputError(f"{field}: {error}") from error


def model_named_by(option: str) -> contextlib.AbstractContextManager[None]:
    """Let errors about a model name the command's option."""
    return named_by({"model.name": option})


class MainFailedError(Exception):
    """The main process has failed in `from_main`, and says why."""
