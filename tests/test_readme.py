"""What the README promises: its Python runs, its commands exist, its tree is the disk's."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from hrpo.cli.main import COMMANDS, main
from hrpo.cli.parser import Parser

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from architecture import READING_ORDER  # noqa: E402

NUMBERS = {12: "twelve", 13: "thirteen", 14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen"}
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMAND_LINES = [
    shlex.split(line.removeprefix(".venv/bin/"))
    for line in "".join(blocks("bash")).splitlines()
    if line.startswith(".venv/bin/hrpo ")
]


def test_python():
    example, code = blocks("python")
    assert example == (ROOT / "examples" / "word_order.py").read_text()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_commands_are_there():
    assert {words[1] for words in COMMAND_LINES} == set(COMMANDS)


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_commands_parse(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = Parser(prog="hrpo")
    COMMANDS[words[1]][0](parser)
    parser.parse_args(words[2:])


def test_main_job_and_trace(tmp_path, monkeypatch, capsys):
    """`make train` and the trace, cut short."""
    recipe = re.search(r"hrpo train (--config \S+)", (ROOT / "Makefile").read_text()).group(1)
    assert f"hrpo train {recipe}" in README
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    main(["train", *recipe.split(), *["--max_steps", "1", "--eval.problems", "2", "--rollout.prompts_per_step", "2"]])
    (trace,) = [words for words in COMMAND_LINES if words[1] == "generate"]
    main(trace[1:])
    assert "latent candidates" in capsys.readouterr().out


# those of recipes/launch are Accelerate's: test_processes.py
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "launch")
PAPER = [recipe for recipe in RECIPES if recipe.parent.name == "paper"]


def command_of(recipe):
    """The words of the command that a recipe's first line is."""
    return shlex.split(recipe.read_text().splitlines()[0].removeprefix("# "))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_begins_with_its_command(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, command, *words = command_of(recipe)
    configs = [word for option, word in itertools.pairwise(words) if option == "--config"]
    assert (program, words[0]) == ("hrpo", "--config")
    assert str(recipe.relative_to(ROOT)) in configs
    assert command in ("train", "sft", "compare")
    parser = Parser(prog="hrpo train")
    COMMANDS[command][0](parser)
    parser.parse_args(words)


def test_the_papers_recipes_are_there():
    names = {f"{task}-{size}.yaml" for task in ("gsm8k", "math", "mmlu_arc", "knowledge") for size in ("1.5b", "3b")}
    assert {recipe.name for recipe in PAPER} == names


@pytest.mark.parametrize("recipe", PAPER, ids=lambda path: path.name)
def test_dry_run_of_the_papers_recipes(recipe, monkeypatch, tmp_path, capsys):
    """Resolved, validated and printed; no weights are loaded, nothing is written, nothing is asked of the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = [str(tmp_path / word) if word in ("FILE", "TEST") else word for word in command_of(recipe)[2:]]
    for name in ("FILE", "TEST"):
        (tmp_path / name).write_text("")
    words[1] = str(recipe)
    monkeypatch.chdir(tmp_path)
    main(["train", *words, "--dry-run"])
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed.split("plan of")[0])
    header = recipe.read_text()
    rollout = config["rollout"]
    assert (
        f"{config['max_steps']:,} updates of {rollout['prompts_per_step'] * rollout['group_size']} completions"
        in header.replace("\n# ", " ")
    )
    assert f"{config['max_steps']:,}" in printed
    assert config["optimizer"]["lr"] == 5e-6
    assert config["model"]["name"].lower() == f"qwen/qwen2.5-{recipe.stem.rpartition('-')[2]}-instruct"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "TEST"]


PACKAGE = ROOT / "src" / "hrpo"


def test_tree_is_the_disk():
    """The story's files in reading order, a line a room, and the folders beside the package."""
    (tree,) = [block for block in blocks("text") if block.startswith("src/hrpo/")]
    shown = re.findall(r"^  (\S+)", tree, re.MULTILINE)
    files, rooms = ([name for name in shown if name.endswith("/") == room] for room in (False, True))
    assert files == [f"{name}.py" for name in READING_ORDER]
    assert set(files) == {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    assert sorted(rooms) == sorted(["tiny/", *(f"{folder.relative_to(PACKAGE)}/" for folder in folders)])
    for folder in re.findall(r"^(\w+)/ ", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir()


def test_story_is_as_long_as_said():
    number, lines = re.search(r"can be read alone: (\w+) files, ([\d,]+) lines", README).groups()
    assert number == NUMBERS[len(READING_ORDER)]
    real = sum(len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in READING_ORDER)
    assert int(lines.replace(",", "")) == pytest.approx(real, rel=0.05)


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
