"""A settings file, looked through before it is used: what is wrong in it becomes one line that names the place."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from hrpo.common.errors import InputError
from hrpo.config.schema import TrainConfig

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


def parse(text: str) -> Any:
    """Return what a YAML text holds, read by the safe loader.

    Raises:
        yaml.YAMLError: it is no YAML, or holds what no setting is.

    """
    try:
        return _Loader(text).get_single_data()
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, OverflowError, AttributeError) as error:  # 5,000 digits, 2025-02-30, !!timestamp x
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return what a file holds, which is YAML with sections; names and values are looked at later.

    Raises:
        InputError: names the file and the line.

    """
    try:
        settings = parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError("--config", f"{path} is no UTF-8 text: {error.reason}", "save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError("--config", f"{path}, line {line}: {problem}", FORM) from error
    except yaml.YAMLError as error:
        raise InputError("--config", f"{path} is no YAML ({error})", FORM) from error
    if not isinstance(settings, dict):
        raise InputError("--config", f"{path} holds no settings", FORM)
    for section in SECTIONS:
        if section in settings and not isinstance(settings[section], dict):
            raise InputError(section, f"{path} gives no fields of it, got {settings[section]!r}", FORM)
    found: dict[str, Any] = settings
    return found
