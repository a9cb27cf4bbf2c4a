"""The errors that the command line turns into a few lines of text."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence


class InputError(ValueError):
    """Something the user gave cannot be used, said in one line, "FIELD: PROBLEM; FIX"; `hrpo` exits with 2.

    Args:
        field: what it is about: a setting (rollout.top_k), an option (--out) or a file; empty where nothing is named.
        problem: what is wrong with it.
        fix: what to do; empty where the problem says it.

    """

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        super().__init__(field, problem, fix)  # so that it can be sent to another process
        self.field, self.problem, self.fix = field, problem, fix

    def __str__(self) -> str:
        """Return the line."""
        return "; ".join(text for text in (": ".join(filter(None, (self.field, self.problem))), self.fix) if text)

    def renamed(self, names: Mapping[str, str]) -> "InputError":
        """Return the same about a field of another name, where `names` has one: FIELD -> NAME."""
        return InputError(names.get(self.field, self.field), self.problem, self.fix)

    @classmethod
    def joined(cls, errors: Sequence["InputError"]) -> "InputError":
        """Return one error that says what several say."""
        first, *others = errors
        if not others:
            return first
        return cls(first.field, "; also ".join([str(cls("", first.problem, first.fix)), *map(str, others)]))


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
        raise error.renamed(options) from error


@contextlib.contextmanager
def of_field(field: str) -> Iterator[None]:
    """Let errors that name a file begin with the field that it comes from; those that name a task's field stay."""
    try:
        yield
    except InputError as error:
        if error.field.startswith("task."):
            raise
        raise InputError(field, str(error)) from error


@contextlib.contextmanager
def model_named_by(option: str, which: str = "") -> Iterator[None]:
    """Let errors about a model name the command's option, and which of its models it is: "the base model"."""
    try:
        yield
    except InputError as error:
        if error.field != "model.name":
            raise
        raise InputError(option, f"{which}: {error.problem}" if which else error.problem, error.fix) from error


class MainFailedError(Exception):
    """The main process has failed in `from_main`, and says why."""
