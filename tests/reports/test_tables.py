"""How numbers are written, and the tables of a run."""

import json
from pathlib import Path

import pytest

from hrpo.reports.results import Evaluation, mode_scores
from hrpo.reports.tables import number, p_value, percent, points, run_rows, scores_table

KEPT = json.loads((Path(__file__).parents[2] / "docs" / "study" / "hybrid-1.json").read_text())["evaluation"]


def test_numbers():
    assert number(None, ".3f") == "-"
    assert number(0.5, ".3f") == "0.500"
    assert number(0.5, ".1%", (0.25, 0.75)) == "50.0% [25.0%, 75.0%]"
    assert number(0.0, ".1f", (0.0, 0.0)) == "0.0 [0.0, 0.0]"
    assert percent(0.5) == "50.0"
    assert percent(0.5, (0.25, 0.75)) == "50.0 [25.0, 75.0]"
    assert points(0.05, (-0.01, 0.11)) == "+5.0 [-1.0, +11.0]"


@pytest.mark.parametrize(
    ("p", "digits", "text"),
    [(0.5, 3, "0.500"), (0.001, 3, "0.001"), (0.00099, 3, "<.001"), (0.0001, 4, "0.0001"), (0.00009, 4, "<.0001")],
)
def test_p_values(p, digits, text):
    assert p_value(p, digits) == text


def scores(**changes):
    names = {"accuracy": 0.25, "lenient_accuracy": 0.5}
    part = {"problems": 8, **names, **{f"{name}_interval": [0.125, 0.75] for name in names}}
    part |= {"format_rate": 0.5, "length": 12.25, "truncation_rate": 0.125, "hidden_ratio": 0.1, **changes}
    return part


def test_rows_of_a_run():
    metric = {"metric": 0.75, "metric_interval": [0.5, 1.0]}
    evaluation = Evaluation.from_json({"before": {"greedy": scores()}, "after": {"greedy": scores(**metric)}})
    metrics = [
        {"reward": 0.125, "frac_reward_zero_std": 0.5},
        {},
        {"reward": 0.25, "frac_reward_zero_std": 0.25},
        {"frac_reward_zero_std": 0.0},
    ]
    accuracy, lenient = "25.0% [12.5%, 75.0%]", "50.0% [12.5%, 75.0%]"
    assert run_rows(evaluation, metrics) == [
        ["greedy accuracy", accuracy, accuracy],
        ["greedy lenient accuracy", lenient, lenient],
        ["greedy metric", "-", "0.750 [0.500, 1.000]"],
        ["sampled accuracy", "-", "-"],
        ["sampled lenient accuracy", "-", "-"],
        ["sampled length (tokens)", "-", "-"],
        ["completions with one delimiter", "-", "-"],
        ["hidden ratio", "-", "-"],
        ["training reward", "0.125", "0.250"],
        ["groups without a signal", "50%", "0%"],
    ]


def test_table_of_one_model():
    table = scores_table(mode_scores({"greedy": scores(), "sampled": scores(problems=9, length=3.0)}))
    assert table.markdown() == [
        "|  | greedy | sampled |",
        "| --- | --- | --- |",
        "| problems | 8 | 9 |",
        "| accuracy [95 %] | 25.0% [12.5%, 75.0%] | 25.0% [12.5%, 75.0%] |",
        "| lenient accuracy [95 %] | 50.0% [12.5%, 75.0%] | 50.0% [12.5%, 75.0%] |",
        "| length (tokens) | 12.2 | 3.0 |",
        "| cut off at the limit | 12.5% | 12.5% |",
        "| one delimiter | 50.0% | 50.0% |",
        "| hidden ratio | 0.1000 | 0.1000 |",
    ]


def test_a_table_on_the_terminal(capsys):
    scores_table(mode_scores(KEPT["after"])).show("what [it] scored")
    printed = capsys.readouterr().out
    assert "what [it] scored" in printed
    assert f"{KEPT['after']['greedy']['length']:.1f}" in printed
