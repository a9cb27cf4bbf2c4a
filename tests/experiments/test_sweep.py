"""`hrpo compare`: each run trained once, what was stopped goes on, and the numbers of a comparison by hand."""

import dataclasses
import json
import math
import shutil

import pytest

from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.common.statistics import t_quantile
from hrpo.config.schema import EvalConfig, LatentConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.experiments import sweep as module
from hrpo.experiments.report import report
from hrpo.experiments.summary import markdown, plot_curves, summarize
from hrpo.experiments.sweep import compare, of_modes
from hrpo.reports.comparisons import Change
from hrpo.reports.results import RunResult

MODES, SEEDS = ["hybrid", "hidden", "sft"], [0, 4]


def small(folder):
    return TrainConfig(
        name="{mode}-{seed}",
        output_dir=str(folder / "runs"),
        max_steps=3,
        save_every=1,
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=2, group_size=2, max_new_tokens=16),
        eval=EvalConfig(problems=4, batch=4),
    )


@pytest.fixture
def config(tmp_path):
    return small(tmp_path)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_runs(config, tmp_path, monkeypatch, capsys):
    """Stopped in its second run, gone on with, and repeated for nothing."""
    folder, trained = tmp_path / "runs", []

    def interrupted(run, *, resume, stop, train=module.train):
        trained.append((run.run_folder.name, resume))
        if len(trained) == 2:
            train(dataclasses.replace(run, eval=EvalConfig(0)))  # all updates, but no evaluation
            raise KeyboardInterrupt
        return train(run, resume=resume)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(of_modes(config, MODES), SEEDS)
    assert not (folder / "comparison.json").exists()
    before = files(folder / "hybrid-0")
    comparison = compare(of_modes(config, MODES), SEEDS)
    names = ["hybrid-0", "hidden-0", "hidden-0", "sft-0", "hybrid-4", "hidden-4", "sft-4"]
    assert trained == [(name, place == 2) for place, name in enumerate(names)]
    assert files(folder / "hybrid-0") == before
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(json.dumps(comparison.to_json()))
    assert (folder / "comparison.md").read_text() == markdown(comparison)
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert [len((folder / name / "metrics.jsonl").read_text().splitlines()) for name in set(names)] == [3] * 6
    assert comparison.results["hidden"]["hidden_ratio"].mean == 1
    assert comparison.results["sft"]["hidden_ratio"].mean == 0
    kept = json.loads((folder / "hybrid-4.json").read_text())
    assert kept["settings"] == json.loads(json.dumps(dataclasses.asdict(of_modes(config, MODES)["hybrid"]))) | {
        "seed": 4,
        "check": {**dataclasses.asdict(config.check), "patience": 0},
    }
    greedy = kept["evaluation"]["after"]["greedy"]
    assert kept["right"]["after"]["greedy"].count("1") == greedy["accuracy"] * greedy["problems"]
    assert kept["metrics"]["step"] == [1, 2, 3]
    shutil.rmtree(folder / "hybrid-0")  # the result is enough
    assert compare(of_modes(config, MODES), SEEDS) == comparison
    assert len(trained) == 7
    with pytest.raises(InputError, match="max_steps differ from"):
        compare(of_modes(dataclasses.replace(config, max_steps=4), MODES), SEEDS)


def test_results_elsewhere(config, tmp_path):
    """Small files that can be kept, for ever, without the runs."""
    arms = {"low": config, "high": dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, top_k=0))}
    arms = {name: dataclasses.replace(arm, name="{arm}-{seed}") for name, arm in arms.items()}
    comparison = compare(arms, [3], str(tmp_path / "study"))
    names = {"low-3.json", "high-3.json", "comparison.json", "comparison.md", "comparison.png"}
    assert {path.name for path in (tmp_path / "study").iterdir()} == names
    shutil.rmtree(tmp_path / "runs")
    assert compare(arms, [3], str(tmp_path / "study")) == comparison
    assert not (tmp_path / "runs").exists()
    path = tmp_path / "study" / "low-3.json"
    kept = json.loads(path.read_text())
    del kept["settings"]["loss"]["policy"]  # a setting that is newer than the result
    path.write_text(json.dumps(kept))
    assert compare(arms, [3], str(tmp_path / "study")) == comparison
    with pytest.raises(InputError, match=r"low-3\.json is of other settings \(latent\.r_min differ"):
        compare(
            {**arms, "low": dataclasses.replace(arms["low"], latent=LatentConfig(r_min=0.5))}, [3], str(path.parent)
        )
    path.write_text(json.dumps(kept)[:-9])
    with pytest.raises(InputError, match=r"low-3\.json is damaged"):
        compare(arms, [3], str(tmp_path / "study"))


@pytest.mark.slow
def test_trained_models_decoded_in_other_modes(config, tmp_path, monkeypatch):
    decode = {"hybrid": ["hybrid", "discrete", "swapped", "noise"]}
    comparison = compare(of_modes(config, ["hybrid", "discrete"]), SEEDS, decode=decode)
    again = [f"hybrid as {mode}" for mode in decode["hybrid"]]
    assert comparison.arms == ["hybrid", "discrete", *again]
    assert len(comparison.differences) == 2 * 5
    results = comparison.results
    assert results["hybrid as hybrid"] == results["hybrid"]  # the same numbers, problems and models
    assert results["hybrid as discrete"]["hidden_ratio"].mean == 0
    assert results["hybrid as noise"]["hidden_ratio"].mean > 0
    assert all(results[arm]["greedy"].before == results["hybrid"]["greedy"].before for arm in again)
    runs, path = tmp_path / "runs", tmp_path / "runs" / "hybrid-4-as-noise.json"
    kept = json.loads(path.read_text())
    assert (kept["run"], kept["decoded"], kept["metrics"]) == ("hybrid-4", "noise", {})
    assert kept["right"]["after"]["greedy"].count("1") == 4 * kept["evaluation"]["after"]["greedy"]["accuracy"]
    with pytest.raises(InputError, match="decoded once more"):
        report([str(path)], str(tmp_path / "report.html"))
    shutil.rmtree(runs / "hybrid-4")
    assert compare(of_modes(config, ["hybrid", "discrete"]), SEEDS, decode=decode) == comparison
    path.unlink()
    with pytest.raises(InputError, match=r"hybrid-4/checkpoint-3 is not what .*; delete .*hybrid-4 and hybrid-4\.json"):
        compare(of_modes(config, ["hybrid", "discrete"]), SEEDS, decode=decode)
    (runs / "hybrid-0-as-noise.json").unlink()  # an earlier checkpoint is another model than was evaluated
    shutil.rmtree(runs / "hybrid-0" / "checkpoint-3")
    with pytest.raises(InputError, match=r"hybrid-0/checkpoint-3 is not what the run ended with"):
        compare(of_modes(config, ["hybrid", "discrete"]), [0], decode=decode)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        ({"other": ["noise"]}, "decode: there is no arm other; the arms are discrete, sft"),
        ({"discrete": ["noise"]}, "decode: noise needs a trained gate, which discrete-0 has not"),
        ({"sft": ["hybrid"]}, "decode: hybrid needs a trained gate, which sft-0 has not"),
    ],
)
def test_decoding_that_cannot_be(config, tmp_path, decode, message):
    with pytest.raises(InputError, match=message):
        compare(of_modes(config, ["discrete", "sft"]), [0], decode=decode)
    assert list(tmp_path.iterdir()) == []


def test_a_decoded_arm_takes_no_name_of_another(config, tmp_path):
    arms = {"low": config, "low as noise": dataclasses.replace(config, latent=LatentConfig(r_min=0.5))}
    for name, names in (("{arm}-{seed}", arms), ("low-0", {"low": config})):
        named = {arm: dataclasses.replace(settings, name=name) for arm, settings in names.items()}
        report = "comparison" if len(names) > 1 else "low-0-as-noise"
        with pytest.raises(InputError, match=r"name: .* decoded once more|report: 'low-0-as-noise' must be"):
            compare(named, [0], report=report, decode={"low": ["noise"]})
    assert list(tmp_path.iterdir()) == []


def test_results_on_other_test_problems_are_refused(config, tmp_path):
    """The settings of a run may change these when it goes on; a comparison pairs them."""
    arms = of_modes(config, ["discrete"])
    compare(arms, [0])
    more = of_modes(dataclasses.replace(config, eval=EvalConfig(problems=6, batch=4)), ["discrete", "sft"])
    with pytest.raises(InputError, match=r"eval\.problems: \S+discrete-0 has answers to 4; give 4"):
        compare(more, [0])
    shutil.rmtree(tmp_path / "runs" / "discrete-0")
    with pytest.raises(InputError, match=r"eval\.problems: \S+discrete-0\.json has answers to 4; give 4"):
        compare(more, [0])
    assert not (tmp_path / "runs" / "sft-0").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept.pop("right"),
        lambda kept: kept["right"]["after"].update(greedy="101"),
        lambda kept: kept["evaluation"].pop("after"),
        lambda kept: kept["evaluation"]["after"]["sampled"].pop("length"),
        lambda kept: kept["evaluation"]["after"]["greedy"].update(accuracy=None),
        lambda kept: kept["metrics"].clear(),
        lambda kept: kept["metrics"]["reward"].pop(),
        lambda kept: kept["settings"].update(task=[]),
    ],
)
def test_a_damaged_result_is_told_before_anything_is_trained(config, kept_result, damage):
    folder, text = kept_result
    kept = json.loads(text)
    damage(kept)
    (folder / "discrete-0.json").write_text(json.dumps(kept))
    config = dataclasses.replace(config, output_dir=str(folder))
    with pytest.raises(InputError, match=r"results: \S+discrete-0\.json is damaged \(.+\); delete it"):
        compare(of_modes(config, ["discrete", "hybrid"]), [0])
    assert [path.name for path in folder.iterdir()] == ["discrete-0.json"]


@pytest.fixture(scope="module")
def kept_result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    compare(of_modes(small(folder), ["discrete"]), [0])
    (folder / "results").mkdir()
    return folder / "results", (folder / "runs" / "discrete-0.json").read_text()


def test_a_damaged_run_folder_is_told(config, tmp_path):
    arms = of_modes(config, ["discrete"])
    compare(arms, [0])
    (tmp_path / "runs" / "discrete-0.json").unlink()
    (tmp_path / "runs" / "discrete-0" / "answers-after-sampled.jsonl").unlink()
    with pytest.raises(InputError, match=r"name: \S+discrete-0 is damaged \(.+sampled.+\); delete it"):
        compare(arms, [0])


def evaluated(accuracy, length=10.0, ratio=0.1):
    names = ("accuracy", "lenient_accuracy", "format_rate", "truncation_rate")
    part = {"problems": 100, **dict.fromkeys(names, accuracy), "length": length, "hidden_ratio": ratio}
    part |= {f"{name}_interval": (0.0, 1.0) for name in names[:2]}
    return {"greedy": part, "sampled": {**part, "accuracy": accuracy - 0.1}}


@pytest.fixture
def finished():
    """Results of two arms from three seeds; the second gains .1, .2 and .3 over the first."""
    settings = {"max_steps": 2, "task": {"name": "arithmetic"}, "eval": {"problems": 100}}
    right = {phase: dict.fromkeys(("greedy", "sampled"), "01" * 50) for phase in ("before", "after")}
    metrics = {
        "step": [1, 2],
        "rollout_seconds": [30, 30],
        "update_seconds": [31, 31],
        "completions/mean_length": [9, 8],
    }
    return {
        (arm, seed): RunResult.from_json(
            {
                "run": f"{arm}-{seed}",
                "settings": {**settings, "seed": seed},
                "versions": {},
                "right": right,
                "metrics": metrics,
                "evaluation": {"before": evaluated(0.2), "after": evaluated(0.4 + gain * (seed + 1), 10 + seed)},
            }
        )
        for seed in (0, 1, 2)
        for arm, gain in (("discrete", 0.0), ("hybrid", 0.1))
    }


def test_numbers_by_hand(finished):
    comparison = summarize(finished)
    hybrid = comparison.results["hybrid"]["greedy"]
    assert hybrid.before == [0.2] * 3
    assert hybrid.after == pytest.approx([0.5, 0.6, 0.7])
    half = t_quantile(2) * 0.1 / math.sqrt(3)
    assert (hybrid.mean, *hybrid.interval) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert comparison.results["discrete"]["sampled"].interval == pytest.approx((0.3, 0.3))
    greedy, sampled = comparison.differences
    assert (greedy.arm, greedy.measure, sampled.measure) == ("hybrid", "greedy", "sampled")
    assert (greedy.difference, *greedy.interval) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert greedy.p == pytest.approx(0.07418, abs=1e-5)  # t = 2 sqrt(3) of 2 degrees
    assert greedy.p_holm == pytest.approx(2 * 0.07418, abs=1e-5)
    length = comparison.results["hybrid"]["length"]
    assert (length.mean, *length.interval) == pytest.approx((11, 11 - 10 * half, 11 + 10 * half))
    assert comparison.seconds == {"discrete": 122, "hybrid": 122}
    change = Change(1, first=[9] * 3, last=[8] * 3, change=-1, interval=(-1, -1))
    assert comparison.training == {arm: {"completions/mean_length": change} for arm in ("discrete", "hybrid")}
    text = markdown(comparison)
    assert "| hybrid | 20.0% | 60.0% [35.2%, 84.8%] | 10.0% | 50.0% [25.2%, 74.8%] | 11.0 [8.5, 13.5] | " in text
    assert "| 0.100 [0.100, 0.100] | 2:02 |" in text
    assert "| hybrid | completion length (tokens) | 9.0 | 8.0 | -1.0 [-1.0, -1.0] |" in text
    assert "| hybrid - discrete | greedy accuracy | +20.0 [-4.8, +44.8] | 0.074 | 0.148 |" in text


def test_runs_without_such_metrics_have_no_table_of_them(finished):
    """As where every one of them skipped an update."""
    bare = {key: dataclasses.replace(result, metrics={"step": [1, 2]}) for key, result in finished.items()}
    assert "while training" not in markdown(summarize(bare))
    assert "while training" in markdown(summarize(finished))


def test_one_seed_has_no_intervals(finished):
    comparison = summarize({key: result for key, result in finished.items() if key[1] == 1})
    assert comparison.differences == []
    assert "| hybrid | 20.0% | 60.0% | 10.0% | 50.0% | 11.0 | 0.100 |" in markdown(comparison)


def test_many_arms_are_all_drawn(finished, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda *_, **style: drawn.append((style["color"], style["ls"])))
    one = finished["hybrid", 0]
    plot_curves({(f"arm {at}", 0): one for at in range(9)}, tmp_path / "curves.png")
    assert len(set(drawn)) == 9


@pytest.mark.parametrize("report", ["", "../out", "hybrid-0"])
def test_reports_that_cannot_be(config, tmp_path, report):
    with pytest.raises(InputError, match="report: "):
        compare(of_modes(config, ["hybrid"]), [0], report=report)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "modes", "seeds", "message"),
    [
        ({}, [], [0], "modes: needs at least one"),
        ({}, ["hybrid"], [1, 1], "seeds: .* each once"),
        ({"name": "{mode}"}, MODES, SEEDS, "name: needs {arm} \\(or {mode}\\) and {seed}"),
        ({"name": "x-{seed}"}, MODES, SEEDS, "name: needs {arm} \\(or {mode}\\) and {seed}"),
        ({"eval": EvalConfig(0)}, MODES, SEEDS, "eval.problems"),
        ({}, ["hybrid", "soft_thinking"], [0], "latent.mode: soft_thinking is training-free"),
        ({"latent": LatentConfig(r_min=1.0)}, MODES, SEEDS, "latent.r_min"),
        ({}, ["hybrid"], [-1], "seed"),
    ],
)
def test_refusals_write_nothing(config, tmp_path, changes, modes, seeds, message):
    with pytest.raises(InputError, match=message):
        compare(of_modes(dataclasses.replace(config, **changes), modes), seeds)
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, capsys):
    words = ["compare", "--config", "recipes/compare.yaml", "--output_dir", str(tmp_path), "--modes", "[discrete,sft]"]
    words += ["--seeds", "[1,2]", "--max_steps", "1", "--eval.problems", "2", "--rollout.prompts_per_step", "2"]
    main(words)
    assert "sft - discrete" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("comparison.json", "comparison.md", "comparison.png"),
        *(name + ending for name in ("discrete-1", "discrete-2", "sft-1", "sft-2") for ending in ("", ".json")),
    }


ARMS = {
    "unknown": ("{a: {latent.rmin: 0.9}}", "arms.a: error: unknown option latent.rmin; did you mean latent.r_min?"),
    "ill-typed": ("{a: {max_steps: many}}", "arms.a: error: max_steps: must be a whole number, got many"),
    "out of range": ("{a: {}, b: {latent.r_min: 2}}", "latent.r_min: needs 0 < r_min"),
    "other budget": ("{a: {}, b: {max_steps: 2}}", "arms.b: max_steps and eval.problems must be the same"),
    "no settings": ("{a: 3}", "arms"),
    "a number for a name": ("{0.98: {}}", 'arms: an arm\'s name is text; write "0.98", in quotes'),
    "seed": ("{a: {seed: 3}}", "arms.a: seed is not an arm's own; give seeds"),
}


@pytest.mark.parametrize(("arms", "message"), ARMS.values(), ids=ARMS)
def test_arms_that_cannot_be(tmp_path, capsys, arms, message):
    words = ["compare", "--config", "recipes/compare.yaml", "--output_dir", str(tmp_path / "runs"), "--max_steps", "1"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--name", "{arm}-{seed}", "--arms", arms])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_arms(tmp_path, capsys):
    words = ["compare", "--config", "recipes/compare.yaml", "--output_dir", str(tmp_path / "runs"), "--seeds", "[0]"]
    words += ["--max_steps", "1", "--eval.problems", "2", "--rollout.prompts_per_step", "2", "--name", "{arm}-{seed}"]
    main(
        [
            *words,
            "--arms",
            "{cold: {rollout.temperature: 0.3}, plain: {latent.mode: discrete, gradient_checkpointing: true}}",
        ]
    )
    assert "plain" in capsys.readouterr().out
    settings = json.loads((tmp_path / "runs" / "cold-0.json").read_text())["settings"]
    assert (settings["rollout"]["temperature"], settings["latent"]["mode"]) == (0.3, "hybrid")
    settings = json.loads((tmp_path / "runs" / "plain-0.json").read_text())["settings"]
    assert (
        settings["latent"]["mode"],
        settings["gradient_checkpointing"],
        settings["rollout"]["prompts_per_step"],
    ) == ("discrete", True, 2)


@pytest.mark.parametrize("name", ["arms", "decode", "results"])
def test_a_setting_without_a_value(tmp_path, capsys, name):
    (tmp_path / "more.yaml").write_text(f"max_steps: 1\n{name}:")
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--config", "recipes/compare.yaml", "--config", str(tmp_path / "more.yaml")])
    assert f"{name}: has no value; give one, or leave it out" in capsys.readouterr().err
