"""Columns to one HTML file that needs nothing else: its style, its script and all data are in it."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrpo.common.files import write_text
from hrpo.common.version import __version__
from hrpo.inspection.record import PARTS, Column, Json

FOLDER = Path(__file__).parent
HEIGHT = 760  # of the page within a notebook, in pixels


@dataclass(frozen=True)
class Page:
    """An HTML page that shows itself in a notebook."""

    html: str

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_text(Path(path), self.html)

    def _repr_html_(self) -> str:
        """In a frame, so that neither page nor notebook can change the other."""
        return (
            f'<iframe title="hrpo inspect" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width:100%;height:{HEIGHT}px;border:0"></iframe>'
        )


def make_page(title: str, problems: Sequence[Json], group_size: int, columns: Sequence[Column]) -> Page:
    """Return the page.

    Args:
        title: what was asked.
        problems: question and gold answer of each, B.
        group_size: completions of each, G; a column has B * G.
        columns: rollouts on the same problems, side by side.

    """
    vocabularies, maps, about = list[Json](), list[Json](), list[Json]()
    for column in columns:
        maps += [column.gates] if column.gates is not None else []
        about.append(
            {
                **column.about,
                "tokens": -1 if column.tokens is None else _place(vocabularies, column.tokens),
                "map": -1 if column.gates is None else len(maps) - 1,
            }
        )
    ratios = [ratio for column in columns for record in column.records for ratio in record["ratio"] if ratio >= 0]
    index = {
        "title": title,
        "version": __version__,
        "problems": problems,
        "groupSize": group_size,
        "columns": about,
        "range": [min(ratios), max(ratios)] if ratios else [0, PARTS],
        "entropy": max(most for column in columns for record in column.records for most in record["entropy"]),
        "summaries": [column.summaries for column in columns],
    }
    blocks = [_block("index", index)]
    blocks += [_block(f"tokens-{place}", vocabulary) for place, vocabulary in enumerate(vocabularies)]
    blocks += [_block(f"map-{place}", gates) for place, gates in enumerate(maps)]
    blocks += [
        _block(f"record-{place}-{n}", record)
        for place, column in enumerate(columns)
        for n, record in enumerate(column.records)
    ]
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    before, after = (FOLDER / "page.html").read_text(encoding="utf-8").split("<!-- data -->")
    head = before.replace("/* style */", style).replace("sha256-", f"sha256-{digest}")
    return Page(head + "\n".join(blocks) + after.replace("/* script */", script))


def _place(known: list[Json], one: Json) -> int:
    """Return where something is in a list, put there if it is new."""
    if one not in known:
        known.append(one)
    return known.index(one)


def _block(name: str, value: Any) -> str:
    """Return data for the script, in ASCII: no text of a model can end the element, or be anything but data."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
