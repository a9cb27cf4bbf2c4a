"""Parse a command line: what is wrong with it becomes one line in plain words that names the field."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from hrpo.common.errors import InputError
from hrpo.common.output import visible, warn
from hrpo.config.load import read_settings_file
from hrpo.config.old_names import NEW_NAMES, line_about, with_new_names, words_with_new_names

# jsonargparse's words, and ours
UNKNOWN_OPTION = re.compile(
    r"unrecognized arguments: --([\w.-]+)|Group '(\w+)' does not accept option '([\w.]+)'|Option '([\w.]+)' is not"
)
PLAIN_WORDS = [
    (r"\s+", " "),
    (r'^Parser key "([\w.]+)": ?', r"\1: "),
    (r"^Unexpected config:.*", "--config: there is no such file"),
    (r"^config: File does not exist: '(.*)'", r"--config: there is no file \1"),
    (r"^config: Path is not a file: '(.*)'", r"--config: \1 is a folder, not a file of settings"),
    (r"^unrecognized arguments: (.*)", r"\1: not expected here; options begin with --, texts with spaces need quotes"),
    (r"^argument (\S+): ignored explicit argument (.*)", r"\1: takes no value, got \2"),
    (r"^(\w+): Unable to load config '(.*?)'.*", r"\1: no settings file \2; one setting is --\1.FIELD VALUE"),
    (r"a typing\.Literal\[(.*?)\]", r"one of \1"),
    (r"a <class 'int'>", "a whole number"),
    (r"a <class 'float'>", "a number"),
    (r"a <class 'bool'>", "true or false"),
    (r"a <class 'str'>", "text (quote it)"),
    (r"a <class 'dict'>", "names with their values, {NAME: VALUE}"),
    (
        r"Does not validate against any of the Union subtypes .*? Errors: - (.*) - Expected (.*) Given value type: .*?"
        r" Given value: (.*)",
        r"\1, or \2; got \3",
    ),
]


class Parser(ArgumentParser):
    """Answers bad input with one line that names the field, and the closest name for an unknown one."""

    def error(self, message: str, *_: Any, **__: Any) -> NoReturn:
        """Exit with 2."""
        unknown = UNKNOWN_OPTION.search(message)
        if unknown is None:
            for pattern, words in PLAIN_WORDS:
                message = re.sub(pattern, words, message.strip())
            self.exit(2, f"{self.prog}: error: {message}\n")
        name = ".".join(group for group in unknown.groups() if group)
        options = {option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")}
        known = {option: option for option in options} | {old: new for old, new in NEW_NAMES.items() if new in options}
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {known[close[0]]}?" if close else "see --help"
        self.exit(2, f"{self.prog}: error: unknown option {name}; {hint}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit with a message that may quote what the user gave."""
        super().exit(status, message and visible(message))

    def parse_args(self, words: Sequence[str], *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse; a whole number too large for a float, of 400 digits say, is an error as any other."""
        if "--max_steps" in self._option_string_actions:  # a parser of settings, not of a command's own options
            words, notes = words_with_new_names(words)
            self._tell_of(notes)
        try:
            settings: Namespace = super().parse_args(words, *args, **kwargs)
        except OverflowError as error:
            self.error(f"a number of the settings is too large ({error}); write it with fewer digits")
        return settings

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Look a settings file through, then read it."""
        given, notes = with_new_names(read_settings_file(Path(path)))
        if notes:
            self._tell_of(notes)
            settings: Namespace = self.parse_string(yaml.safe_dump(given, sort_keys=False), *args, **kwargs)
        else:
            settings = super().parse_path(path, *args, **kwargs)
        return settings

    def _tell_of(self, old_names: Sequence[str]) -> None:
        if old_names and os.environ.get("LOCAL_RANK", "0") == "0":
            warn(f"{self.prog}: {line_about(old_names)}")


def refuse_empty(settings: dict[str, Any]) -> None:
    """Refuse settings without a value.

    Raises:
        InputError: names the first of them.
    """
    for name in _empty(settings):
        raise InputError(f"{name}: has no value; give one, or leave it out")


def _empty(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of settings without a value, `lr:`, which jsonargparse lets pass within a section."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _empty(value, f"{prefix}{name}.")
        elif value is None:
            yield f"{prefix}{name}"


# What adds a command's arguments to its parser, what runs it, and its line in the list of commands.
Command = tuple[Callable[[Parser], None], Callable[[Namespace], None], str]
