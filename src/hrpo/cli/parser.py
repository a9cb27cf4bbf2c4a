"""Parse a command line: what is wrong with it becomes one line in plain words that names the field."""

import difflib
import os
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from hrpo.common.errors import InputError
from hrpo.common.output import visible, warn
from hrpo.config.load import SECTIONS, read_settings_file
from hrpo.config.old_names import NEW_NAMES, line_about, with_new_names, words_with_new_names

# What jsonargparse says in its text alone: which option there is not, which setting is meant, and its value.
UNKNOWN_OPTION = re.compile(
    r"unrecognized arguments: --([\w.-]+)|Group '(\w+)' does not accept option '([\w.]+)'|Option '([\w.]+)' is not"
)
SETTING = re.compile(r'Parser key "([\w.]+)"')
VALUE = re.compile(r"(?:Got|Given) value: (.*)\Z", re.DOTALL)
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (quote it)",
    list: "a list, [A, B]",
    dict: "names with their values, {NAME: VALUE}",
}


class Parser(ArgumentParser):
    """Answers bad input with one line that names the field, and the closest name for an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2."""
        unknown = UNKNOWN_OPTION.search(message)
        if unknown is None:
            self.exit(2, f"{self.prog}: error: {self._problem(message, ex)}\n")
        name = ".".join(group for group in unknown.groups() if group)
        options = {option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")}
        known = {option: option for option in options} | {old: new for old, new in NEW_NAMES.items() if new in options}
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {known[close[0]]}?" if close else "see --help"
        self.exit(2, f"{self.prog}: error: unknown option {name}; {hint}\n")

    def _problem(self, message: str, error: Exception | None) -> str:
        """Return what is wrong with what was given, beginning with its name."""
        setting, value = SETTING.match(message), VALUE.search(message)
        if isinstance(error, ArgumentError):
            action = self._option_string_actions.get(error.argument_name or "")
            return f"{error.argument_name}: {'takes no value' if action and action.nargs == 0 else error.message}"
        if setting is None:
            hint = "; options begin with --, and texts with spaces need quotes" if "unrecognized" in message else ""
            return " ".join(message.split()) + hint
        name = setting[1]
        if name == "config":
            given = error and error.__cause__  # of the file's path
            return f"--config: there is no such file of settings ({given})" if given else "--config: no such file"
        if name in SECTIONS:
            return f"{name}: a section is given by its settings, as --{name}.FIELD VALUE"
        kind = getattr(self._option_string_actions.get(f"--{name}"), "_typehint", Any)
        return f"{name}: must be {wanted(kind)}, got {value[1].strip() if value else 'another'}"

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


def wanted(kind: Any) -> str:
    """Return what a value of a type is, in words."""
    origin = get_origin(kind)
    if origin is Annotated:
        return wanted(get_args(kind)[0])
    if origin is Literal:
        values = [str(value) for value in get_args(kind)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin in (Union, UnionType):
        return ", or ".join(map(wanted, get_args(kind)))
    return WORDS.get(origin or kind, "another value")


def refuse_empty(settings: dict[str, Any]) -> None:
    """Refuse settings without a value.

    Raises:
        InputError: names the first of them.
    """
    for name in _empty(settings):
        raise InputError(name, "has no value", "give one, or leave it out")


def _empty(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of settings without a value, `lr:`, which jsonargparse lets pass within a section."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _empty(value, f"{prefix}{name}.")
        elif value is None:
            yield f"{prefix}{name}"


# What adds a command's arguments to its parser, what runs it, and its line in the list of commands.
Command = tuple[Callable[[Parser], None], Callable[[Namespace], None], str]
