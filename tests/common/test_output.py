"""What a terminal gets to see: texts as they are, and none that it takes for a command."""

import io
import json
import sys

import pytest
from rich.console import Console

from hrpo.cli.main import main
from hrpo.common.console import Bar, Screen, bar, console, print_table
from hrpo.common.errors import OutputError
from hrpo.common.output import say, visible, warn

MARKUP = ["lr[bold]x", "a[/b]", "[red]", "[link=https://x.y]z[/link]", ":bomb:", r"\[x]", "[/]"]
COMMANDS = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b31m": r"\x9b31m",  # C1
    "a\rb": r"a\rb",
    "a\x08b\x7f": r"a\x08b\x7f",
    "\x00": r"\x00",
    "\u202eabc\u2066": r"\u202eabc\u2066",  # directions of writing
    "\u2028": r"\u2028",
    "\ud83d": r"\ud83d",  # half of a pair
}
SHOWN = "tab\tand\nnew line, é, 漢字, 👩‍👩‍👧, مرحبا"


def test_visible():
    assert {text: visible(text) for text in COMMANDS} == COMMANDS
    assert visible(SHOWN) == SHOWN


@pytest.mark.parametrize("text", [*MARKUP, *COMMANDS])
def test_texts_are_shown_as_they_are(capsys, text):
    console.print(f"run {text}")
    print_table(text, ["", text], [[text, "1"]])
    assert visible(f"run {text}\n") in (said := capsys.readouterr().out)
    assert said.count(visible(text)) >= 4
    say(text)
    warn(text)
    assert capsys.readouterr() == (visible(text) + "\n", visible(text) + "\n")


@pytest.mark.parametrize("text", [*MARKUP, *COMMANDS])
def test_so_is_the_label_of_a_bar(monkeypatch, text):
    """On a terminal."""
    written = io.StringIO()
    monkeypatch.setattr("sys.stdout", written)
    monkeypatch.setattr(Console, "is_terminal", True)
    screen = Screen(width=200)
    monkeypatch.setattr("hrpo.common.console.console", screen)
    with bar(text, 2) as progress:
        assert isinstance(progress, Bar)
        progress.advance(note="note [b]")
    assert visible(text) in written.getvalue()
    assert "note [b]" in written.getvalue()


@pytest.mark.parametrize("write", [console.print, say])
def test_an_output_that_takes_nothing_is_told_from_a_file(monkeypatch, write):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(full.fileno(), "w", closefd=False)))
        with pytest.raises(OutputError, match=r"standard output \(No space left on device\)"):
            write("x" * 2**17)
        monkeypatch.undo()
    console.begin_capture()
    console.end_capture()


def test_where_nobody_can_be_told_nothing_ends(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        warn("x")
        monkeypatch.undo()


def test_a_hostile_question(tmp_path, capsys):
    rows = [{"question": "\x1b[31mWhat\u202e is 1+1?", "answer": "So.\n#### 2"}]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["tasks", "gsm8k", "--path", str(path)])
    said = capsys.readouterr().out
    assert r"\x1b[31mWhat\u202e is 1+1?" in said
    assert not {"\x1b", "\u202e"} & set(said)


@pytest.mark.parametrize("words", [["train", "--seed=\x1b[2J"], ["\x1b[2J"], ["report", "\x1b[2J[bold]"]])
def test_what_was_typed_is_no_command_either(capsys, words):
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert r"\x1b[2J" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("name", ["a[/b]", "lr[bold]x", ":bomb:"])
def test_a_run_of_any_name(tmp_path, capsys, name):
    words = "--rollout.prompts_per_step 1 --rollout.group_size 2 --rollout.max_new_tokens 4 --check.prompts 0"
    words += " --eval.problems 1"
    main(["train", "--name", name, "--output_dir", str(tmp_path), "--max_steps", "1", *words.split()])
    assert f"report: {tmp_path / name / 'report.md'}\n" in capsys.readouterr().out
