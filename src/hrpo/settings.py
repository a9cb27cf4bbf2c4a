"""A settings file, looked through before it is used: what is wrong in it becomes one line that names the place."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from hrpo.config import TrainConfig
from hrpo.errors import InputError

SECTIONS = [field.name for field in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(field.type)]
FORM = "a setting is a line NAME: VALUE, those of a section are indented below it with spaces"


class _Loader(yaml.SafeLoader):
    """Refuses a name that is set twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, (key, _) in enumerate(node.value):
            if key.value in names[:place]:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def check_settings_file(path: Path) -> None:
    """Refuse a file that is no YAML, or whose sections are none; names and values are looked at later.

    Raises:
        InputError: names the file and the line.

    """
    try:
        settings = yaml.load(path.read_bytes().decode(), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"--config: {path} is no UTF-8 text: {error.reason}; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"--config: {path}, line {line}: {problem}; {FORM}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--config: {path} is no YAML ({error}); {FORM}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config: {path} holds no settings; {FORM}")
    try:
        json.dumps(settings, default=str, skipkeys=True)
    except ValueError as error:
        raise InputError(f"--config: {path} has an anchor (&) that holds itself (*); write it out") from error
    for section in SECTIONS:
        if section in settings and not isinstance(settings[section], dict):
            raise InputError(f"{section}: {path} gives no fields of it, got {settings[section]!r}; {FORM}")
