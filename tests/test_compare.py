"""`hrpo compare`: each run trained once, what was stopped goes on, and the numbers of a comparison by hand."""

import dataclasses
import json
import math

import pytest

from hrpo import compare as module
from hrpo.cli import main
from hrpo.compare import compare, markdown, plan_runs, summarize
from hrpo.config import CompareConfig, EvalConfig, LatentConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.errors import InputError
from hrpo.statistics import t_quantile

CONTEST = CompareConfig(["hybrid", "hidden", "sft"], [0, 4])


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="{mode}-{seed}",
        folder=str(tmp_path / "runs"),
        updates=3,
        save_every=1,
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts=2, group_size=2, max_new_tokens=16),
        eval=EvalConfig(problems=4, batch=4),
    )


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_runs(config, tmp_path, monkeypatch, capsys):
    """Stopped in its second run, gone on with, and repeated for nothing."""
    folder, trained = tmp_path / "runs", []

    def interrupted(run, *, resume, train=module.train):
        trained.append((run.run_folder.name, resume))
        if len(trained) == 2:
            train(dataclasses.replace(run, eval=EvalConfig(0)))  # all updates, but no evaluation
            raise KeyboardInterrupt
        return train(run, resume=resume)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, CONTEST)
    assert not (folder / "comparison.json").exists()
    before = files(folder / "hybrid-0")
    comparison = compare(config, CONTEST)
    names = ["hybrid-0", "hidden-0", "hidden-0", "sft-0", "hybrid-4", "hidden-4", "sft-4"]
    assert trained == [(name, place == 2) for place, name in enumerate(names)]
    assert files(folder / "hybrid-0") == before
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(json.dumps(comparison))
    assert (folder / "comparison.md").read_text() == markdown(comparison)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [len((folder / name / "metrics.jsonl").read_text().splitlines()) for name in set(names)] == [3] * 6
    assert comparison["hidden_ratios"]["hidden"] == 1
    assert comparison["hidden_ratios"]["sft"] == 0
    assert compare(config, CONTEST) == comparison
    assert len(trained) == 7
    with pytest.raises(InputError, match="updates differ"):
        compare(dataclasses.replace(config, updates=4), CONTEST)


def evaluated(accuracy, length=10.0, ratio=0.1):
    part = {"accuracy": accuracy, "length": length, "hidden_ratio": ratio, "problems": 100}
    return {"greedy": part, "sampled": {**part, "accuracy": accuracy - 0.1}}


@pytest.fixture
def finished(config):
    """Runs of two modes on three seeds that never ran; the second gains .1, .2 and .3 over the first."""
    contest = CompareConfig(["discrete", "hybrid"], [0, 1, 2])
    runs = plan_runs(config, contest)
    for (mode, seed), run in runs.items():
        run.run_folder.mkdir(parents=True)
        gain = 0.1 * (seed + 1) if mode == "hybrid" else 0.0
        evaluation = {"before": evaluated(0.2), "after": evaluated(0.4 + gain, 10 + seed)}
        (run.run_folder / "evaluation.json").write_text(json.dumps(evaluation))
        (run.run_folder / "metrics.jsonl").write_text('{"rollout_seconds": 30, "update_seconds": 31}\n' * 2)
    return contest, runs


def test_numbers_by_hand(finished):
    comparison = summarize(*finished)
    hybrid = comparison["results"]["hybrid"]["greedy"]
    assert hybrid["before"] == [0.2] * 3
    assert hybrid["after"] == pytest.approx([0.5, 0.6, 0.7])
    half = t_quantile(2) * 0.1 / math.sqrt(3)
    assert (hybrid["mean"], *hybrid["interval"]) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert comparison["results"]["discrete"]["sampled"]["interval"] == pytest.approx((0.3, 0.3))
    greedy, sampled = comparison["differences"]
    assert (greedy["mode"], greedy["measure"], sampled["measure"]) == ("hybrid", "greedy", "sampled")
    assert (greedy["difference"], *greedy["interval"]) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert greedy["p"] == pytest.approx(0.07418, abs=1e-5)  # t = 2 sqrt(3) of 2 degrees
    assert greedy["p_holm"] == pytest.approx(2 * 0.07418, abs=1e-5)
    assert comparison["lengths"] == {"discrete": 11, "hybrid": 11}
    assert comparison["seconds"] == {"discrete": 122, "hybrid": 122}
    text = markdown(comparison)
    assert "| hybrid | 20.0% | 60.0% [35.2%, 84.8%] | 10.0% | 50.0% [25.2%, 74.8%] | 11.0 | 0.100 | 2:02 |" in text
    assert "| hybrid - discrete | greedy accuracy | +20.0 [-4.8, +44.8] | 0.074 | 0.148 |" in text


def test_one_seed_has_no_intervals(finished):
    contest, runs = finished
    comparison = summarize(CompareConfig(contest.modes, [1]), runs)
    assert comparison["differences"] == []
    assert "| hybrid | 20.0% | 60.0% | 10.0% | 50.0% |" in markdown(comparison)


@pytest.mark.parametrize(
    ("changes", "contest", "message"),
    [
        ({}, CompareConfig([], [0]), "modes: needs at least one"),
        ({}, CompareConfig(["hybrid"], [1, 1]), "seeds: .* each once"),
        ({"name": "{mode}"}, CONTEST, "name: needs {mode} and {seed}"),
        ({"name": "x-{seed}"}, CONTEST, "name: needs {mode} and {seed}"),
        ({"eval": EvalConfig(0)}, CONTEST, "eval.problems"),
        ({}, CompareConfig(["hybrid", "soft_thinking"], [0]), "latent.mode: soft_thinking is training-free"),
        ({"latent": LatentConfig(r_min=1.0)}, CONTEST, "latent.r_min"),
        ({}, CompareConfig(["hybrid"], [-1]), "seed"),
    ],
)
def test_refusals_write_nothing(config, tmp_path, changes, contest, message):
    with pytest.raises(InputError, match=message):
        compare(dataclasses.replace(config, **changes), contest)
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, capsys):
    words = ["compare", "--config", "recipes/compare.yaml", "--folder", str(tmp_path), "--modes", "[discrete,sft]"]
    words += ["--seeds", "[1,2]", "--updates", "1", "--eval.problems", "2", "--rollout.prompts", "2"]
    main(words)
    assert "sft - discrete" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("comparison.json", "comparison.md", "curves.png"),
        *("discrete-1", "discrete-2", "sft-1", "sft-2"),
    }
