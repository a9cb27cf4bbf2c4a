"""Texts in Markdown come out as they went in, by a parser of somebody else's."""

import html
import json
import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from hrpo.common.markdown import block, code, inline, table
from hrpo.common.output import visible
from hrpo.reports.run_report import write_report

TEXTS = [
    "lr[bold]x",
    "[click](javascript:alert(1))",
    "![image](http://x.y/z.png)",
    "[a][b]",
    "a `code` b",
    "```",
    "` ``",
    "a | b",
    r"a \| b \\ \frac{1}{2} \*",
    "*bold* __under__ _line_ ~~gone~~ snake_case 2*3*4",
    "<script>alert(1)</script> <b>",
    "&lt; &amp; & &#60;",
    "12.3 [10.1, 14.0]",
    "<.001",
    "\x1b[31mred\u202e",
    r"ends in \ ".strip(),
]


def parsed(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def text_of(page: str, tag: str) -> list[str]:
    """The texts of all elements of a kind, which may hold no other element."""
    return [html.unescape(found) for found in re.findall(f"<{tag}[^>]*>([^<]*)</{tag}>", page)]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_what_they_are(text):
    shown = visible(text)
    assert text_of(parsed(f"# {inline(text)}"), "h1") == [shown]
    assert text_of(parsed("\n".join(table([text, "b"], [["1", text], [text, text]]))), "t[hd]") == [
        *(shown, "b"),
        *("1", shown),
        *(shown, shown),
    ]
    assert text_of(parsed(f"gold {code(text)}:"), "code") == [shown]
    assert text_of(parsed(block(f"a\n{text}")), "code") == [f"a\n{shown}\n"]


def test_a_cell_of_several_lines():
    assert "<td>a<br>b</td>" in parsed("\n".join(table(["x"], [["a\nb"]])))


@pytest.mark.parametrize("text", TEXTS)
def test_a_report_of_them(tmp_path, text):
    """Its headings and sections are its own, whatever was asked and written."""
    row = {"step": 1, "question": text, "gold": text, "completion": f"{text}\n# {text}", "reward": 0.5}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward": 0.5, "update_seconds": 1}) + "\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": text}))
    write_report(tmp_path)
    page = parsed(Path(tmp_path / "report.md").read_text())
    assert text_of(page, "h2") == ["Curves", "Last completions", "Settings"]
    assert text_of(page, "code")[0] == visible(text)
    assert not re.search("<(script|a|em|strong|s|b)[ >]", page)
