"""Curves of runs: which points are drawn."""

import json
from pathlib import Path

import pytest

from hrpo.reports.plots import OF_COMPARISON, OF_REPORT, OF_RUN, TITLES, curve, plot_arms, plot_run, smooth
from hrpo.reports.results import RunResult

KEPT = RunResult.from_json(json.loads((Path(__file__).parents[2] / "docs" / "study" / "hybrid-1.json").read_text()))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, by the title of its panel: x, y and the label of each line."""
    lines = {}

    def seen(panel, x, y, **style):
        lines.setdefault(panel.get_title(loc="left"), []).append((list(x), list(y), style.get("label")))

    monkeypatch.setattr("matplotlib.axes.Axes.plot", seen)
    return lines


def test_smooth():
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert smooth([], 5) == []


def test_every_panel_has_a_title():
    assert {*OF_RUN, *OF_COMPARISON, *OF_REPORT} == TITLES.keys()


def test_curve_of_accuracy_is_that_of_the_evaluations():
    scored = KEPT.to_json()["evaluation"]
    expected = [(0, scored["before"]["greedy"]["accuracy"]), (60, scored["after"]["greedy"]["accuracy"])]
    assert curve(KEPT, "accuracy") == expected
    assert curve(KEPT, "nll") == []


def test_a_run_skips_updates_that_lack_a_number(drawn, tmp_path):
    plot_run([{"step": 1, "reward": 0.0}, {"step": 2}, {"step": 3, "reward": 1.0}], tmp_path / "curves.png")
    assert drawn == {"mean reward": [([1, 3], [0.0, 1.0], None), ([1, 3], [0.0, 0.5], None)]}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_arms_are_means_as_long_as_the_shortest_run(drawn, tmp_path):
    metrics = ({"step": [1, 2], "kl": [1.0, 3.0]}, {"step": [1, 2, 3], "kl": [3.0, 5.0, 0.0]})
    runs = [RunResult.from_json({**KEPT.to_json(), "metrics": part}) for part in metrics]
    plot_arms({"one": runs[:1], "two": runs}, OF_COMPARISON, tmp_path / "curves.png")
    assert drawn == {TITLES["kl"]: [([1, 2], [1.0, 2.0], "one"), ([1, 2], [2.0, 3.0], "two")]}
