"""Print docs/options.md from the dataclasses of the settings: python scripts/options.py > docs/options.md."""

import dataclasses
from argparse import SUPPRESS
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from hrpo.cli.main import COMMANDS
from hrpo.cli.parser import Parser
from hrpo.config.old_names import NEW_NAMES, NEW_VALUES
from hrpo.config.schema import TrainConfig

TYPES = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
HEAD = """# Options

Every setting of `hrpo train`, `hrpo check` and `hrpo sft`, made from
[config/schema.py](../src/hrpo/config/schema.py) by `python scripts/options.py > docs/options.md`. In a YAML file
(`--config FILE`) a section holds its options; on the command line an option is `--section.option VALUE`, and what comes
later overrides what comes before:

```bash
hrpo train --config recipes/quickstart.yaml --rollout.group_size 4 --task.rewards.format 0.2
```

`hrpo train --help` lists the same. Which value to choose: [settings.md](settings.md)."""


def arguments(config: type[Any]) -> dict[str, str]:
    """Return what the docstring of a dataclass says about each of its fields."""
    return {p.arg_name: " ".join((p.description or "").split()) for p in parse(config.__doc__ or "").params}


def sections() -> dict[str, type[Any]]:
    """Return the dataclasses in TrainConfig by their field's name; its own options stand under ""."""
    hints = get_type_hints(TrainConfig)
    return {"": TrainConfig, **{name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}}


def options(section: str, config: type[Any]) -> list[list[str]]:
    """Return a row for each option of a dataclass: full name, default, type or choices, meaning."""
    hints, says = get_type_hints(config), arguments(config)
    rows = []
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not dataclasses.is_dataclass(default):
            rows.append(
                [
                    f"`{section and section + '.'}{field.name}`",
                    shown(default),
                    kind(hints[field.name]),
                    says[field.name],
                ]
            )
    return rows


def shown(value: Any) -> str:
    """Return a default as YAML has it."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float):
        text = f"{value:g}".replace("e-0", "e-")
    elif isinstance(value, dict):
        text = ", ".join(f"{name}: {number:g}" for name, number in value.items())
    else:
        text = str(value)
    return f"`{text}`" if text else "empty"


def kind(hint: Any) -> str:
    """Return a type in words, or its choices."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is Union:
        return ", ".join(map(kind, get_args(hint)))
    if get_origin(hint) is dict:
        return "names with numbers"
    return TYPES[hint]


def command_options(command: str) -> list[list[str]]:
    """Return a row for each argument of a command that is no setting of a run: name, default, meaning."""
    parser = Parser(prog=f"hrpo {command}")
    COMMANDS[command][0](parser)
    settings = {field.name for field in dataclasses.fields(TrainConfig)} if command in ("train", "check", "sft") else ()
    rows = []
    for action in parser._actions:
        if action.dest.split(".")[0] in settings or action.dest in ("help", "print_config"):
            continue
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        missing = "needed" if action.required else "empty"
        default = missing if action.default in (None, SUPPRESS) else shown(action.default)
        rows.append([f"`{name}`", default, str(action.help)])
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def page() -> str:
    """Return docs/options.md."""
    parts, about = [HEAD], arguments(TrainConfig)
    for name, config in sections().items():
        title = f"## {name}: {about[name].rstrip('.')}" if name else "## The run: options without a section"
        parts += [title, table(["option", "default", "value", "meaning"], options(name, config))]
    parts.append(
        "## Options of the commands\n\nThose that are no settings of a run. `hrpo COMMAND --help` lists them too."
    )
    for command, (_, _, summary) in COMMANDS.items():
        parts += [f"### hrpo {command}\n\n{summary[0].upper()}{summary[1:]}.", *_table_of(command)]
    renamed = NEW_NAMES | {
        f"{name} {old}": f"{name} {new}" for name, to in NEW_VALUES.items() for old, new in to.items()
    }
    parts += [
        "## Names of 0.1\n\nThis version takes them too, in files and on the command line, and says what they are now.",
        table(["now", "in 0.1"], [[f"`{new}`", f"`{old}`"] for old, new in renamed.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _table_of(command: str) -> list[str]:
    rows = command_options(command)
    return [table(["argument", "default", "meaning"], rows)] if rows else []


if __name__ == "__main__":
    print(page(), end="")
