"""A page of sections, each a table, a picture or a text, as HTML that needs no other file and as Markdown."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from hrpo.common.markdown import block, inline
from hrpo.reports.tables import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page: a title, what to know of it, and a table, a picture, or text as it is.

    Args:
        title: over it.
        note: a paragraph below the title.
        table: of numbers or texts.
        picture: a PNG file beside the page; HTML holds it within itself.
        alt: what the picture shows.
        text: YAML, folded up in HTML.

    """

    title: str
    note: str = ""
    table: Table | None = None
    picture: Path | None = None
    alt: str = ""
    text: str = ""


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the page in Markdown."""
    lines = [f"# {inline(title)}"]
    for section in sections:
        lines += ["", f"## {inline(section.title)}", "", inline(section.note)]
        if section.picture:
            lines += ["", f"![curves]({quote(section.picture.name)})"]
        if section.table:
            lines += ["", *section.table.markdown()]
        if section.text:
            lines += ["", block(section.text, "yaml").rstrip()]
    return "\n".join(lines) + "\n"


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Return the page in HTML, in which every text stays what it is."""
    loader = PackageLoader("hrpo.reports")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    return environment.get_template("page.html").render(title=title, sections=sections)
