"""The check before a run, its advice, and the stop of a run that learns nothing."""

import dataclasses
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hrpo.advantages import distinct_share
from hrpo.cli.main import main
from hrpo.common.errors import StoppedError
from hrpo.config.schema import (
    CheckConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TaskConfig,
    TrainConfig,
)
from hrpo.storage.run_dir import newest_checkpoint
from hrpo.training.advice import Signs, advice, memory_advice
from hrpo.training.preflight import check, check_run
from hrpo.training.run import Run
from hrpo.training.train import train, without_signal


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="test",
        output_dir=str(tmp_path / "runs"),
        max_steps=6,
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=3, group_size=4, max_new_tokens=48),
        optimizer=OptimizerConfig(lr=1e-4),
        check=CheckConfig(prompts=5, patience=3),
        eval=EvalConfig(problems=0),
    )


GOOD = Signs(reward=0.4, signal=0.8, format_rate=0.95, truncation_rate=0.0, distinct=0.9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"truncation_rate": 0.5}, ["rollout.max_new_tokens (now 512)"]),
        ({"format_rate": 0.1}, ["task.num_fewshot 2"]),
        ({"format_rate": 0.1, "signal": 0.0, "reward": 0.0}, ["hrpo sft"]),
        ({"signal": 0.1, "reward": 0.97}, ["harder problems"]),
        ({"signal": 0.1, "distinct": 0.2}, ["rollout.temperature (now 0.5)"]),
        ({"signal": 0.0, "reward": 0.0}, ["rollout.group_size (now 8)"]),
        ({"signal": 0.2}, ["rollout.group_size (now 8)"]),
        (
            {"signal": 0.0, "reward": 0.0, "format_rate": 0.0, "truncation_rate": 1.0},
            ["rollout.max_new_tokens", "task.num_fewshot"],
        ),
    ],
)
def test_advice_names_the_option(changes, named):
    tips = advice(dataclasses.replace(GOOD, **changes), RolloutConfig(), TaskConfig())
    assert len(tips) == len(named)
    for tip, option in zip(tips, named, strict=True):
        assert option in tip


def test_advice_asks_first_whether_an_end_is_known():
    cut = dataclasses.replace(GOOD, truncation_rate=1.0)
    (tip,) = advice(cut, RolloutConfig(), TaskConfig(), [])
    assert "no token is known to end a completion" in tip
    assert "rollout.max_new_tokens" not in tip
    (tip,) = advice(cut, RolloutConfig(), TaskConfig(), ["<eos>", "<|im_end|>"])
    assert "none with what ends one ('<eos>', '<|im_end|>'): " in tip
    assert tip.endswith("else raise rollout.max_new_tokens (now 512)")
    (tip,) = advice(dataclasses.replace(cut, truncation_rate=0.9), RolloutConfig(), TaskConfig(), ["<eos>"])
    assert tip.endswith("before an answer: raise rollout.max_new_tokens (now 512)")


def test_advice_does_not_repeat_what_was_done():
    (tip,) = advice(dataclasses.replace(GOOD, format_rate=0.2), RolloutConfig(), TaskConfig(num_fewshot=4))
    assert "in spite of 4 worked examples" in tip
    assert "task.num_fewshot" not in tip
    assert memory_advice(5, 10, ModelConfig(), "auto") == []
    (tip,) = memory_advice(10, 10, ModelConfig(), "auto")
    assert "gradient_checkpointing" in tip
    (tip,) = memory_advice(10, 10, ModelConfig(), gradient_checkpointing=True)
    assert "gradient_checkpointing" not in tip


def test_distinct_share():
    ids = torch.tensor([[1, 2], [1, 2], [1, 2], [3, 2], [1, 1], [2, 2], [3, 3], [4, 4]])
    assert distinct_share(ids, 4) == pytest.approx((2 + 4) / 8)


def test_check_changes_nothing(config):
    """The same first update with the check before it and without."""
    plain, checked = Run(config), Run(dataclasses.replace(config, name="checked"))
    before = torch.get_rng_state()
    result = check(checked)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in checked.model.parameters())
    a, b = plain.train_step(), checked.train_step()
    assert {k: v for k, v in a.items() if "second" not in k} == {k: v for k, v in b.items() if "second" not in k}
    assert (result.prompts, result.completions) == (5, 20)
    assert 0 < result.signs.format_rate <= 1
    assert 0 < result.length <= result.longest <= 48


def test_estimates(tmp_path):
    """Peak memory comes near what a run takes, in a process of its own."""
    code = """
import sys, torch
from hrpo.cli.main import main
from hrpo.common.memory import peak_memory
words = ["--config", "recipes/quickstart.yaml", "--max_steps=3", "--eval.problems=0", "--output_dir", sys.argv[1]]
main(["train", *words])
print(peak_memory(torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    peak = int(done.stdout.splitlines()[-1])
    (folder,) = tmp_path.iterdir()
    checked = json.loads((folder / "check.json").read_text())
    assert 0.8 * peak < checked["peak_bytes"] < 1.25 * peak


def test_estimated_seconds(config, monkeypatch):
    """By a clock that goes on by one second at each look: one for the rollout of 20 completions, one for gradients."""
    config = dataclasses.replace(config, eval=EvalConfig(problems=4))
    monkeypatch.setattr("hrpo.training.preflight.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    result = check(Run(config))
    assert result.update_seconds == pytest.approx(12 / 20 + 1)  # 3 prompts of 4 completions, all with gradients
    assert result.run_seconds == pytest.approx(6 * result.update_seconds + 4 * 4 / 20)  # greedy and sampled, twice
    assert result.tokens_per_second == pytest.approx(result.length * 20)


def test_check_command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["check", "--model.lora_rank=0", "--rollout.max_new_tokens=3", "--check.prompts=2"])
    printed = capsys.readouterr().out
    assert "groups with a signal" in printed
    assert "- 100% of the completions are cut off" in printed or "rollout.max_new_tokens (now 3)" in printed
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_run_without_a_signal_stops(config):
    """Two tokens are never an answer, so all rewards are 0."""
    config = dataclasses.replace(config, rollout=RolloutConfig(2, 2, max_new_tokens=2), loss=LossConfig(beta=0.0))
    with pytest.raises(StoppedError) as stopped:
        train(config)
    assert "check.patience" in str(stopped.value)
    assert "rollout.max_new_tokens (now 2)" in str(stopped.value)
    folder = config.run_folder
    assert newest_checkpoint(folder).name == "checkpoint-3"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    checked = json.loads((folder / "check.json").read_text())
    assert checked["signal"] == 0
    assert any("rollout.max_new_tokens" in tip for tip in checked["advice"])


def test_stopped_run_exits_with_3(capsys, tmp_path):
    words = ["train", "--output_dir", str(tmp_path), "--model.lora_rank=0", "--eval.problems=0", "--check.prompts=0"]
    words += ["--rollout.max_new_tokens=2", "--rollout.prompts_per_step=2", "--check.patience=1"]
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 3
    printed = capsys.readouterr().err
    assert printed.startswith("hrpo: stopped: no group had a signal")
    assert "Traceback" not in printed


def test_patience():
    updates = [{"frac_reward_zero_std": 0.5}, {"frac_reward_zero_std": 1.0}, {"frac_reward_zero_std": 1.0}]
    assert without_signal(updates, 2)
    assert not without_signal(updates, 3)
    assert not without_signal(updates, 4)
    assert not without_signal(updates, 0)
    assert not without_signal([{"nll": 1.0}] * 5, 2)


def test_check_run_leaves_the_folder_alone(config, tmp_path):
    check_run(config)
    assert list(tmp_path.iterdir()) == []


ROOM = """
import torch
from benchmarks.harness import forget_peak, peak_gigabytes
room = torch.ones(50_000_000)  # .2 GB
before = peak_gigabytes()
del room
forget_peak()
print(before - peak_gigabytes())
"""


def test_benchmarks_begin_anew_with_the_peak():
    done = subprocess.run([sys.executable, "-c", ROOM], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.15 or "cannot be reset here" in done.stderr
