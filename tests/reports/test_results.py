"""The schema of results: what was kept in the study loads, is written back as it was, and gives the study's tables."""

import copy
import json
from pathlib import Path

import pytest

from hrpo.common.metrics import with_trl_names
from hrpo.config.old_names import with_new_names
from hrpo.experiments.summary import markdown, summarize
from hrpo.reports.results import DecodeMode, Evaluation, RunResult

STUDY = Path(__file__).parents[2] / "docs" / "study"
KEPT = json.loads((STUDY / "hybrid-1.json").read_text())


def test_every_result_of_the_study_is_written_back_as_it_was():
    """But for its settings and metrics, which have the names of this version."""
    texts = [path.read_text() for path in STUDY.rglob("*.json")]
    kept = [text for text in texts if "right" in json.loads(text)]
    assert len(kept) == 174
    for text in kept:
        data = json.loads(text)
        settings, _ = with_new_names(data["settings"])
        written = RunResult.from_json(data).to_json()
        assert json.dumps(written.pop("metrics")) == json.dumps(with_trl_names(data.pop("metrics"), others))
        assert json.dumps(written) == json.dumps({**data, "settings": settings})


def others(shares):
    return [1 - share for share in shares]


@pytest.mark.parametrize("name", ["modes", "ablations", "loss"])
def test_a_comparison_of_the_study_made_again(name):
    """The table rows are those of the report from back then, and the numbers but for their last digits."""
    before = json.loads((STUDY / f"{name}.json").read_text())
    finished = {
        (arm, seed): RunResult.from_json(json.loads((STUDY / f"{place(arm, seed)}.json").read_text()))
        for seed in before["seeds"]
        for arm in before["arms"]
    }
    comparison = summarize(finished)
    rows = [line for line in (STUDY / f"{name}.md").read_text().splitlines() if line.startswith("|")]
    assert [line for line in markdown(comparison, name).splitlines() if line.startswith("|")] == rows
    assert leaves(json.loads(json.dumps(comparison.to_json()))) == {
        path: pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        for path, value in leaves(renamed(before)).items()
    }


def renamed(comparison):
    """Its training metrics by the names of this version."""
    training = {arm: with_trl_names(metrics) for arm, metrics in comparison["training"].items()}
    return {**comparison, "training": training}


def place(arm, seed):
    name, _, mode = arm.partition(" as ")
    return f"{name}-{seed}-as-{mode}" if mode else f"{name}-{seed}"


def leaves(value, path=""):
    """Every value of a file by its path."""
    if not isinstance(value, dict | list):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in pairs for name, leaf in leaves(part, f"{path}/{key}").items()}


def test_an_evaluation_that_has_not_ended():
    evaluation = Evaluation.from_json({"before": KEPT["evaluation"]["before"]})
    assert (list(evaluation.phases()), evaluation.after) == (["before"], {})
    assert list(evaluation.before) == list(DecodeMode) == ["greedy", "sampled"]
    assert Evaluation.from_json({}) == Evaluation()


def test_a_metric_of_the_task_is_kept():
    scores = {**KEPT["evaluation"]["after"]["greedy"], "metric": 0.5, "metric_interval": [0.25, 0.75]}
    evaluation = Evaluation.from_json({"before": {"greedy": scores}})
    assert evaluation.before[DecodeMode.GREEDY].metric_interval == (0.25, 0.75)
    assert json.loads(json.dumps(evaluation.to_json())) == {"before": {"greedy": scores}}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda kept: kept.pop("run"), "run is missing"),
        (lambda kept: kept.update(settings=[]), r"settings is \[\]"),
        (lambda kept: kept["settings"]["task"].pop("name"), "name is missing"),
        (lambda kept: kept["settings"].update(seed="one"), "seed is 'one'"),
        (lambda kept: kept["evaluation"].pop("before"), "not evaluated before training"),
        (lambda kept: kept["evaluation"].update(after=3), "3 has no fields"),
        (lambda kept: kept["evaluation"]["after"].pop("sampled"), "not every answer after training, sampled"),
        (lambda kept: kept["evaluation"]["after"]["greedy"].pop("length"), "length is None and no number"),
        (lambda kept: kept["evaluation"]["after"]["greedy"].update(accuracy_interval=[0]), r"\[0\] and no interval"),
        (lambda kept: kept["evaluation"]["after"]["greedy"].update(accuracy_interval=[0, "1"]), "high is '1'"),
        (lambda kept: kept["right"]["before"].update(greedy="2" * 1000), "not every answer before training, greedy"),
        (lambda kept: kept["metrics"].update(reward=["1"] * 60), "reward has a value that is no number"),
        (lambda kept: kept["metrics"]["reward"].pop(), "reward has not a value for each update"),
        (lambda kept: kept.update(metrics={}), "it has no update"),
    ],
)
def test_what_is_damaged_is_told(damage, said):
    kept = copy.deepcopy(KEPT)
    damage(kept)
    with pytest.raises(ValueError, match=said):
        RunResult.from_json(kept)
