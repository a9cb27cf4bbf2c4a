"""Settings that nobody has set: they run, on the embedded model and on any other."""

import dataclasses
import json

import pytest
import yaml

from hrpo.cli.main import main
from hrpo.config.schema import EvalConfig, RolloutConfig, TrainConfig, length_limit
from hrpo.training.preflight import check_run
from hrpo.training.train import train

# What makes a run short and leaves all lengths open.
FEW = RolloutConfig(prompts_per_step=1, group_size=2)
SMALL = [
    "--max_steps=1",
    "--rollout.prompts_per_step=1",
    "--rollout.group_size=2",
    "--eval.problems=1",
    "--sft.batch=1",
]


@pytest.mark.parametrize(
    ("asked", "context", "limit"),
    [
        ("auto", None, 512),
        ("auto", 4096, 512),
        ("auto", 1024, 512),
        ("auto", 512, 256),
        ("auto", 1, 1),
        (7, 512, 7),
        (512, 512, 512),
    ],
)
def test_length_limit(asked, context, limit):
    assert length_limit(asked, context) == limit


def test_train_with_the_defaults(tmp_path):
    config = TrainConfig(output_dir=str(tmp_path), max_steps=1, rollout=FEW, eval=EvalConfig(problems=1))
    train(config)
    assert yaml.safe_load((config.run_folder / "config.yaml").read_text()) == dataclasses.asdict(config)
    settings = json.loads((config.run_folder / "checkpoint-1" / "hybrid.json").read_text())
    assert settings["max_new_tokens"] == 256
    train(config, resume=True)  # its settings are as they were


def test_commands_with_the_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", *SMALL])
    main(["sft", *SMALL])
    main(["train", "--name=planned", "--dry-run"])
    assert "what the context leaves, 256" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run-hybrid-0", "run-sft-0"]


def test_check_with_the_defaults(tmp_path):
    checked = check_run(TrainConfig(output_dir=str(tmp_path), rollout=FEW))
    assert checked.longest <= 256


def test_a_plain_model_is_evaluated_and_inspected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["eval", "--checkpoint", "tiny", "--tasks", "arithmetic", "--problems", "1", "--samples", "0", "--out", "e"])
    settings = json.loads((tmp_path / "e" / "settings.json").read_text())
    assert settings["checkpoints"]["tiny"]["decoding"]["max_new_tokens"] == 256
    main(["inspect", "--checkpoint", "tiny", "--task", "arithmetic", "-n", "1", "--out", "page.html"])
    assert (tmp_path / "page.html").is_file()
