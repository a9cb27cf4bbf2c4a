"""Chat templates that write today's date: a run and its checkpoints, or an evaluation, keep to one day.

Otherwise the prompts would change at midnight, and with them a resumed run.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError

DATE_FILE = "date.txt"  # the day, as 2026-11-30, in the folder of a run or an evaluation
CODES = (
    "%a %A %w %d %-d %e %b %B %m %-m %y %Y %H %-H %I %-I %p %M %S %f %z %Z %j %-j %U %W %c %x %X %G %u %V %F %D %T %R"
)
# In front of a template, in place of the function that transformers gives it.
MACRO = (
    "{%- macro strftime_now(format) -%}{%- set text = namespace(value=format) -%}"
    "{%- for code, value in CODES.items() -%}{%- set text.value = text.value.replace(code, value) -%}{%- endfor -%}"
    "{{- text.value -}}{%- endmacro %}\n"
)


def day_of(folder: Path) -> datetime.date:
    """Return the day that the templates of a run or an evaluation keep to; today for a new one.

    Raises:
        InputError: the file with it holds no day.

    """
    path = folder / DATE_FILE
    if not path.is_file():
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(path.read_text().strip())
    except ValueError as error:
        raise InputError(
            str(path), f"it holds no day such as 2026-11-30 ({error})", "write the one it began on"
        ) from error


def pin_date(tokenizer: Any, day: datetime.date) -> bool:
    """Let the tokenizer's chat template write this day, at midnight, as today's; the tokenizer saves it so.

    Returns:
        Whether the template asks for the date. One that keeps to a day already does not.

    """
    template = None if tokenizer is None else tokenizer.chat_template
    named = template if isinstance(template, dict) else {"": template or ""}
    if not any(map(_asks, named.values())):
        return False
    pinned = {name: _macro(day) + text if _asks(text) else text for name, text in named.items()}
    tokenizer.chat_template = pinned if isinstance(template, dict) else pinned[""]
    return True


def _asks(template: str) -> bool:
    return "strftime_now" in template and "macro strftime_now" not in template


def _macro(day: datetime.date) -> str:
    midnight = datetime.datetime(day.year, day.month, day.day)
    codes = {code: midnight.strftime(code) for code in CODES.split()} | {"%%": "%"}
    return MACRO.replace("CODES", json.dumps(codes))
