"""Curves of several runs: for each arm a line, the mean over its runs, and a band from the lowest to the highest."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hrpo.common import files

DASHES = ["-", "--", ":", "-."]
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]  # Okabe and Ito's
SMOOTH = 5  # updates that a point of a curve is the mean of


def plot(arms: Mapping[str, Sequence[dict[str, Any]]], titles: Mapping[str, str], path: Path) -> None:
    """Draw one panel for each metric that any run has.

    Args:
        arms: what `hrpo.experiments.results.result_in` keeps of an arm's runs, by the arm's label.
        titles: metric -> what stands over its panel; "accuracy" is that of the evaluations.
        path: of the picture.

    """
    names = [name for name in titles if any(curve(run, name) for runs in arms.values() for run in runs)]
    rows = -(-len(names) // 2)
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(10, 2.5 * rows), layout="constrained")
        panels = list(figure.subplots(rows, 2, squeeze=False).flat)
        for panel, name in zip(panels, names, strict=False):
            looks = itertools.cycle(itertools.product(DASHES, COLOURS))
            for (label, runs), (dashes, colour) in zip(arms.items(), looks, strict=False):
                curves = [found for run in runs if (found := curve(run, name))]
                if not curves:
                    continue
                steps = [step for step, _ in min(curves, key=len)]
                values = list(zip(*([value for _, value in found[: len(steps)]] for found in curves), strict=True))
                means = [sum(points) / len(points) for points in values]
                mark = "o" if name == "accuracy" else None
                panel.plot(steps, means, color=colour, ls=dashes, lw=1.6, marker=mark, ms=4, label=label)
                panel.fill_between(steps, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.2, lw=0)
            panel.set_title(titles[name], fontsize=9, loc="left")
            panel.set_xlabel("update")
            panel.grid(alpha=0.2)
        for panel in panels[len(names) :]:
            panel.remove()
        shown = [panel.get_legend_handles_labels() for panel in panels[: len(names)]]
        lines = {label: line for found in shown for line, label in zip(*found, strict=True)}
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=4, frameon=False)
        with files.new_file(path, "wb") as file:
            figure.savefig(file, dpi=120)


def curve(result: dict[str, Any], name: str) -> list[tuple[int, float]]:
    """Return (update, value) of a run, smoothed; none where it has no such metric."""
    steps = result["metrics"]["step"]
    if name != "accuracy":
        return list(zip(steps, smooth(result["metrics"].get(name, [])), strict=False))
    known = {when: part["greedy"]["accuracy"] for when, part in result["evaluation"].items()}
    return [(at, known[when]) for when, at in (("before", 0), ("after", steps[-1])) if when in known]


def smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and those just before it."""
    return [sum(values[max(0, i - SMOOTH + 1) : i + 1]) / min(i + 1, SMOOTH) for i in range(len(values))]
