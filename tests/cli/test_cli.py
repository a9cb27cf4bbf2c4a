"""The command line: help, bad input, and each command once for real."""

import json
import os
import subprocess
import sys

import pytest

from hrpo.cli.main import main

RECIPE = ["--config", "recipes/quickstart.yaml", "--name", "small"]
SMALL = [*RECIPE, "--max_steps=2", "--save_every=1", "--rollout.prompts_per_step=3", "--eval.problems=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    main(["train", *SMALL, "--output_dir", str(folder)])
    return folder / "small"


def failure(capsys, *words):
    """Return the one line that a command prints before it exits with 2."""
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


HELP = """
import contextlib, io, sys
from hrpo.cli.main import COMMANDS, main
for words in ([], *([command] for command in COMMANDS)):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert " ".join(["usage: hrpo", *words]) in printed.getvalue(), words
print(*{"torch", "transformers", "matplotlib", "math_verify", "pyarrow"} & sys.modules.keys())
"""


def test_help_needs_nothing_that_takes_long_to_import():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tain", "did you mean train?"),
        ("train --rollout.grup_size 4", "rollout.grup_size; did you mean rollout.group_size?"),
        ("train --zzz 4", "unknown option zzz"),
        ("train --rollout.group_size four", "rollout.group_size"),
        ("train --latent.mode off", "latent.mode"),
        ("train --config nowhere.yaml", "nowhere.yaml"),
        ("train --rollout.group_size 1", "rollout.group_size: must be at least 2"),
        ("eval", "checkpoint"),
        ("eval --checkpoint ./nowhere", "./nowhere"),
        ("eval --checkpoint tiny", "remembers no task"),
        ("generate --checkpoint tiny", "prompts"),
        ("model nothing", "nothing"),
        ("train --model smollm2-135m", "--model.FIELD"),
        ("eval --checkpoint tiny --batch 0", "--batch"),
        ("eval --checkpoint tiny --samples -1", "--samples: must be at least 0"),
        ("eval --checkpoint tiny tiny --tasks arithmetic", "--checkpoint: one is named twice"),
        ("eval --checkpoint tiny --tasks arithmetic,arithmetic", "--tasks: one is named twice"),
        ("eval --checkpoint tiny --tasks gsmk8", "did you mean gsm8k?"),
        ("eval --checkpoint tiny --tasks arithmetic --latent_mode hybrid", "tiny has no trained gate"),
        ("eval --checkpoint tiny --tasks arithmetic --latent_mode fuzzy", "--latent_mode: must be of own, hybrid"),
        ("eval --checkpoint tiny --tasks arithmetic --prompt rude", "--prompt: must be of own, direct, cot"),
        ("eval --checkpoint tiny --tasks arithmetic --max_new_tokens 512", "--max_new_tokens: 512 leave no room"),
        ("eval --checkpoint tiny --tasks arithmetic --out src", "src is there already and holds no evaluation"),
        ("eval --checkpoint tiny --tasks arithmetic --shots 1 --shots_path x.jsonl", "--shots_path"),
        ("train --task.name gsm8k --task.path missing.jsonl", "no file missing.jsonl"),
    ],
)
def test_bad_input_is_one_line(capsys, words, expected):
    assert expected in failure(capsys, *words.split())


def test_unknown_key_in_yaml(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rollout:\n  grup_size: 4\n")
    assert "did you mean rollout.group_size?" in failure(capsys, "train", "--config", str(recipe))
    recipe.write_text("tsk:\n  num_fewshot: 1\n")
    assert "did you mean task.num_fewshot?" in failure(capsys, "train", "--config", str(recipe))
    recipe.write_text("")
    assert "no settings" in failure(capsys, "train", "--config", str(recipe))
    recipe.write_text("name: no\n")
    assert "name: must be text" in failure(capsys, "train", "--config", str(recipe))
    recipe.write_text("rollout: [\n")
    assert "parsing" in failure(capsys, "train", "--config", str(recipe))


def test_existing_run_is_refused(capsys, run):
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert "--resume" in failure(capsys, "train", *SMALL, "--output_dir", str(run.parent))
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


def test_resume_of_a_finished_run_changes_no_metrics(run):
    metrics = (run / "metrics.jsonl").read_text()
    main(["train", *SMALL, "--output_dir", str(run.parent), "--resume"])
    assert (run / "metrics.jsonl").read_text() == metrics


def test_eval(capsys, run, tmp_path):
    out = tmp_path / "evaluation"
    main(["eval", "--checkpoint", str(run), "--problems", "4", "--out", str(out)])
    assert "greedy" in capsys.readouterr().out
    result = json.loads((out / "results.json").read_text())["tasks"]["arithmetic"]["small"]
    after = json.loads((run / "evaluation.json").read_text())["after"]
    assert result["greedy"].pop("writing")
    assert result["greedy"] == after["greedy"]  # remembered: task, mode, temperature, limits
    assert result["sampled"]["problems"] == 4


def test_generate(capsys, run):
    main(["generate", "--checkpoint", str(run), "2+3*4"])
    plain = capsys.readouterr().out
    assert plain.strip()
    main(["generate", "--checkpoint", str(run / "checkpoint-1"), "--trace", "2+3*4", "1+1"])
    traced = capsys.readouterr().out
    assert "latent candidates" in traced
    assert "'####'" in traced
    main(["generate", "--checkpoint", "tiny", "--sample", "--seed", "1", "2+3*4"])
    assert capsys.readouterr().out.strip()


def test_model_list(capsys):
    main(["model"])
    listed = capsys.readouterr().out
    assert "tiny" in listed
    assert "smollm2-135m" in listed


@pytest.mark.parametrize("words", ["tasks", "model", "--help", "--version", "tasks --help"])
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(words, streams):
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m hrpo {words} {streams}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&- " not in f" {streams} ".replace("2>&-", ""))


@pytest.mark.parametrize("words", ["tasks", "--help"])
@pytest.mark.parametrize(
    ("streams", "said"), [("> /dev/full", "No space left on device"), ("1< /dev/null", "Bad file")]
)
def test_output_that_cannot_be_written(words, streams, said):
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m hrpo {words} {streams}"], capture_output=True, text=True)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert f"nothing can be written to standard output ({said}" in done.stderr


def test_a_terminal_without_the_letters(tmp_path):
    """What it has no code for is shown as an escape."""
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Café, ½?", "answer": "#### 3"}, ensure_ascii=False))
    done = subprocess.run(
        [sys.executable, "-m", "hrpo", "tasks", "gsm8k", "--path", str(tmp_path)],
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Caf\xe9, \xbd?" in done.stdout


def test_output_that_nobody_reads_on():
    """As in `hrpo tasks | head -1`: it ends as other programs do, without a traceback."""
    shell = f"set -o pipefail; {sys.executable} -c 'from hrpo.cli.main import main; main([\"tasks\"])' | head -1"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert (done.stdout.split()[0], done.stderr) == ("task", "")
        assert done.returncode in (0, 141)
