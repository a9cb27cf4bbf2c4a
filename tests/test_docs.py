"""What the pages of docs/ promise: options exist, logged keys are documented, messages are real, commands parse."""

import ast
import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from hrpo.cli.main import COMMANDS, main
from hrpo.cli.parser import Parser
from hrpo.reports.run_report import read_lines

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {**DOCS, "../README.md": (ROOT / "README.md").read_text()}

sys.path.insert(0, str(ROOT / "scripts"))
from options import arguments, page, sections  # noqa: E402


def test_options_page_is_what_the_script_makes():
    assert DOCS["options.md"] == page()


@pytest.mark.parametrize("config", sections().values(), ids=lambda config: config.__name__)
def test_every_field_is_explained(config):
    assert list(arguments(config)) == [field.name for field in dataclasses.fields(config)]
    assert all(arguments(config).values())


OPTIONS = {
    f"{section}.{field.name}"
    for section, config in sections().items()
    if section
    for field in dataclasses.fields(config)
}
FILES = ("json", "md", "py", "safetensors", "yaml")


@pytest.mark.parametrize("name", PAGES)
def test_options_named_exist(name):
    names = "|".join(section for section in sections() if section)
    text = re.sub(r"```python\n.*?```", "", PAGES[name].partition("## Names of 0.1")[0], flags=re.DOTALL)
    named = re.findall(rf"(?<![\w./-])(?:--)?((?:{names})\.(\w+))(?=\W)", text)
    assert [option for option, tail in named if option not in OPTIONS and tail not in FILES] == []


def test_every_option_is_found():
    """Or the test above could look past them."""
    assert set(re.findall(r"^\| `(\w+\.\w+)`", DOCS["options.md"], re.MULTILINE)) == OPTIONS


def commands():
    for name, text in DOCS.items():
        for line in "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines():
            words = shlex.split(line.removeprefix(".venv/bin/"), comments=True)
            if words[:1] == ["hrpo"] and "$" not in line:
                yield pytest.param(words[1:], id=f"{name}: {line}")


@pytest.mark.parametrize("words", commands())
def test_commands_parse(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = Parser(prog="hrpo")
    COMMANDS[words[0]][0](parser)
    parser.parse_args(words[1:])


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_headings(name):
    for page_name, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", PAGES[name]):
        target = ROOT / "docs" / name if not page_name else (ROOT / "docs" / name).parent / page_name
        assert anchor in anchors(target.read_text()), (page_name, anchor)


def test_index_has_every_page():
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", DOCS["README.md"])) == set(DOCS) - {"README.md"}
    assert "](docs/README.md)" in PAGES["../README.md"]


def texts():
    """All texts in the package, one after another; what an f-string fills in is a mark."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                yield text_of(node)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError":
                field, problem, *fix = map(text_of, node.args)
                yield "; ".join([f"{field}: {problem}", *fix])


def text_of(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\0"


TEXTS = "\0".join(texts())
MESSAGES = "".join(re.findall(r"```text\n(.*?)```", DOCS["troubleshooting.md"], re.DOTALL)).splitlines()


def pieces(message):
    """The fewest pieces, each within one text of the package, that make up a message without its blanks."""
    found = []
    for part in (blank.strip(" :;,") for blank in message.split("...")):
        while part:
            length = next((n for n in range(len(part), 0, -1) if part[:n] in TEXTS), 1)
            found.append(part[:length])
            part = part[length:]
    return found


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_real(message):
    """Texts of the package, put together at most once between two blanks."""
    assert len(pieces(message)) <= 2 * len(message.split("...")), pieces(message)


def test_a_message_that_is_not_real():
    made_up = "model.name: ... cannot be used: the moon is in the wrong quarter of ..."
    assert len(pieces(made_up)) > 2 * len(made_up.split("..."))


def documented(heading):
    """The keys of the table under a heading of metrics.md."""
    (section,) = [part for part in DOCS["metrics.md"].split("\n## ") if part.startswith(heading)]
    return re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE)


SMALL = ["--max_steps=1", "--rollout.prompts_per_step=2", "--rollout.group_size=2", "--rollout.max_new_tokens=8"]
TASK = """
kind, system = "number", ""
train = [{"prompt": f"{a}+{b}", "gold": str(a + b), "solution": f"#### {a + b}"} for a in range(3) for b in range(3)]
test = [{"prompt": "4+5", "gold": "9"}, {"prompt": "5+4", "gold": "9"}]


def metric(completions, **columns):
    return [0.5] * len(completions)
"""


def run(folder, command, *words):
    """Train once, and return the run's folder."""
    main(
        [
            command,
            "--output_dir",
            str(folder),
            "--name",
            "run",
            *SMALL,
            "--eval.problems=2",
            "--check.prompts=2",
            *words,
        ]
    )
    return folder / "run"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "task.py"
    path.write_text(TASK)
    return ["--task.name", str(path)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, task):
    """A run in which every key occurs: several rewards, and a metric of the task's own."""
    return run(tmp_path_factory.mktemp("runs"), "train", *task, "--task.rewards.format=0.5", "--keep.problems=2")


def test_metrics_of_reinforcement_learning(trained, tmp_path):
    keys = documented("`metrics.jsonl` of `hrpo train`")
    (row,) = read_lines(trained / "metrics.jsonl")
    named = {"reward/NAME" if key.startswith("reward/") else key for key in row}
    assert {key for key in row if key.startswith("reward/")} == {"reward/correct", "reward/format"}
    assert named == set(keys)
    assert len(keys) == len(set(keys))
    other = run(tmp_path, "train", "--loss.beta=0", "--loss.policy=tempered")
    assert set(read_lines(other / "metrics.jsonl")[0]) == set(keys) - {
        *(
            "reward/NAME",
            "kl",
            "sampling/sampling_logp_difference/max",
            "sampling/sampling_logp_difference/mean",
            "sampling/sampling_logp_difference/p99",
        )
    }


def test_metrics_of_supervised_fine_tuning(tmp_path):
    (row,) = read_lines(run(tmp_path, "sft", "--sft.batch=2") / "metrics.jsonl")
    assert list(documented("`metrics.jsonl` of `hrpo sft`")) == list(row)


def test_check(trained):
    assert documented("`check.json`") == list(json.loads((trained / "check.json").read_text()))


def test_evaluation(trained, tmp_path):
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert list(evaluation) == ["before", "after"]
    for when in evaluation.values():
        assert list(when) == ["greedy", "sampled"]
        assert all(documented("`evaluation.json`") == list(numbers) for numbers in when.values())
    other = json.loads((run(tmp_path, "train") / "evaluation.json").read_text())["after"]["greedy"]
    assert set(documented("`evaluation.json`")) - set(other) == {"metric", "metric_interval"}


def test_validation(trained):
    (row,) = read_lines(trained / "validation.jsonl")
    assert list(row) == [*documented("`validation.jsonl`"), *documented("`evaluation.json`")]


def test_answers_and_samples(trained):
    for when in ("before", "after"):
        for how in ("greedy", "sampled"):
            row = read_lines(trained / f"answers-{when}-{how}.jsonl")[0]
            assert documented("`answers-WHEN-HOW.jsonl`") == list(row)
    assert documented("`samples.jsonl`") == list(read_lines(trained / "samples.jsonl")[0])


def test_resuming_may_change_what_the_page_says():
    from hrpo.storage.run_dir import CHANGEABLE

    section = DOCS["troubleshooting.md"].split("## Resuming is refused")[1].split("## ")[0]
    sentence = section.partition("Only ")[2].partition(" may change")[0]
    assert set(re.findall(r"`([\w.]+)`", sentence)) == CHANGEABLE


def test_run_folder_is_as_described(trained):
    section = DOCS["first-run.md"].split("## The run folder")[1].split("## ")[0]
    named = set(re.findall(r"`([\w-]+(?:\.\w+)?)`", section.partition("| file |")[2].partition("A checkpoint")[0]))
    for path in trained.iterdir():
        kind = re.sub(
            r"checkpoint-\d+", "checkpoint-20", re.sub(r"answers-.*", "answers-before-greedy.jsonl", path.name)
        )
        assert kind in named
