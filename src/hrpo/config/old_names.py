"""Settings that had other names in 0.1, which this version still takes."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import yaml

from hrpo.common.errors import InputError
from hrpo.common.output import warn
from hrpo.config.load import parse

NEW_NAMES = {
    "updates": "max_steps",
    "folder": "output_dir",
    "tracker": "report_to",
    "recompute": "gradient_checkpointing",
    "token_budget": "max_tokens_per_microbatch",
    "objective": "algorithm",
    "task.shots": "task.num_fewshot",
    "rollout.prompts": "rollout.prompts_per_step",
    "loss.advantage_scale": "loss.scale_rewards",
    "loss.reduction": "loss.loss_aggregation",
    "keep.last": "keep.save_total_limit",
}
NEW_VALUES = {"sharding": {"full": "fsdp"}}


def with_new_names(settings: Any) -> tuple[Any, list[str]]:
    """Return settings as this version calls them, nested as in a file, and for each that was renamed what it is now.

    What does not look like settings stays as it is: it is refused where it is read.

    Raises:
        InputError: a setting is given by its old name and by its new one.

    """
    if not isinstance(settings, dict):
        return settings, []
    found = {name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()}
    notes = []
    for old, new in NEW_NAMES.items():
        section, _, name = old.rpartition(".")
        place = found.get(section) if section else found
        if not isinstance(place, dict) or name not in place:
            continue
        new_name = new.rpartition(".")[2]
        if new_name in place:
            raise InputError(old, f"is {new} now, which is given too", f"leave {old} out")
        # Rebuilt, so that a setting keeps its place: a file that is written again reads like the one before.
        renamed = {new_name if key == name else key: value for key, value in place.items()}
        place.clear()
        place.update(renamed)
        notes.append(f"{old} is {new} now")
    for name, values in NEW_VALUES.items():
        value = found.get(name)
        if isinstance(value, str) and value in values:
            found[name] = values[value]
            notes.append(f"{name} {value} is {name} {values[value]} now")
    return found, notes


def words_with_new_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line's words as this version has them, and for each that was renamed what it is now."""
    renamed, notes = list[str](), list[str]()
    option = ""  # whose value comes next
    for word in words:
        if not word.startswith("--"):
            renamed.append(_value_with_new_names(option, word, notes))
            option = ""
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if name in NEW_NAMES:
            notes.append(f"{name} is {NEW_NAMES[name]} now")
            name = NEW_NAMES[name]
        renamed.append(f"--{name}{equals}{_value_with_new_names(name, value, notes)}")
        option = "" if equals else name
    return renamed, notes


def _value_with_new_names(option: str, value: str, notes: list[str]) -> str:
    """Return the value of an option, which may be a section's settings, {NAME: VALUE}; says in `notes` what is new."""
    if option not in NEW_VALUES and not any(old.startswith(f"{option}.") for old in NEW_NAMES):
        return value
    try:
        settings, said = with_new_names({option: parse(value)})
    except yaml.YAMLError:  # it is refused where it is read
        return value
    notes += said
    found = settings[option]
    return value if not said else found if isinstance(found, str) else json.dumps(found)


def line_about(notes: Sequence[str]) -> str:
    """Return the line that says which names are old."""
    return f"{', '.join(notes)}; the next version takes the new names alone"


@functools.cache
def say_once(line: str) -> None:
    """Tell of a file's old names the first time that it is read."""
    warn(line)
