"""Markdown that shows texts as they are: nothing in them is taken for a link, a tag, a fence or emphasis."""

import re
from collections.abc import Sequence

from hrpo.common.output import visible

# What Markdown acts on within a line: emphasis, code, strikethrough, cells of tables, what ends the text of a link, an
# underscore that is not within a word, and a backslash before punctuation.
_ACTIVE = re.compile(r"[`*|~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|\\(?=[!-/:-@\[-`{-~])")


def inline(text: str) -> str:
    """Return a text for a heading, a sentence or the cell of a table."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", visible(text))
    text = _ACTIVE.sub(lambda match: "\\" + match[0], text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace(">", "&gt;").replace("\n", "<br>")


def code(text: str) -> str:
    """Return a text as code within a line."""
    text = " ".join(visible(text).splitlines())
    fence = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def block(text: str, language: str = "text") -> str:
    """Return a text as a block of code, with the end of its last line."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{visible(text)}{'' if text.endswith(chr(10)) else chr(10)}{fence}\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    shown = [[inline(cell) for cell in row] for row in (header, *rows)]
    return ["| " + " | ".join(row) + " |" for row in (shown[0], ["---"] * len(header), *shown[1:])]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
