"""A settings file, looked through before it is used: what is wrong in it becomes one line that names the place."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hrpo.common.errors import InputError
from hrpo.config.schema import TrainConfig

SECTIONS = [field.name for field in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(field.type)]
FORM = "a setting is a line NAME: VALUE, those of a section are indented below it with spaces"

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 100_000, 10_000, 20  # settings are a hundred values, four deep at most


class _Loader(yaml.SafeLoader):
    """Refuses a name that is set twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, (key, _) in enumerate(node.value):
            if key.value in names[:place]:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """Return what a YAML text holds; tags and aliases that stand for more than memory holds are refused.

    Raises:
        yaml.YAMLError: it is no YAML, or goes beyond what settings are.

    """
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"over {MOST_BYTES:,} characters")
    depth = 0
    events: Iterator[Any] = yaml.parse(text, _Loader)
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"over {MOST_DEPTH} levels", problem_mark=event.start_mark)
        if getattr(event, "tag", None) not in (None, "!"):
            problem = f"a tag, {event.tag}, which settings have no use for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    loader = _Loader(text)
    root = loader.get_single_node()
    if root is None:
        return None
    waiting, count = [root], 0
    while waiting:  # a list of aliases of a list of aliases of ... is counted in full
        node, count = waiting.pop(), count + 1
        if count > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"over {MOST_VALUES:,} values", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    try:
        return loader.construct_document(node=root)
    except (ValueError, OverflowError) as error:  # 5,000 digits, 2025-02-30
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return what a file holds, which is YAML with sections; names and values are looked at later.

    Raises:
        InputError: names the file and the line.

    """
    try:
        settings = parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"--config: {path} is no UTF-8 text: {error.reason}; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"--config: {path}, line {line}: {problem}; {FORM}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config: {path} is no YAML ({error}); {FORM}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config: {path} holds no settings; {FORM}")
    for section in SECTIONS:
        if section in settings and not isinstance(settings[section], dict):
            raise InputError(f"{section}: {path} gives no fields of it, got {settings[section]!r}; {FORM}")
    found: dict[str, Any] = settings
    return found
