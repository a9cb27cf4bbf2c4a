"""Pictures of metrics over the updates: of one run, and of several arms from several seeds."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hrpo.common import files
from hrpo.common.metrics import MEAN_LENGTH, NO_SIGNAL
from hrpo.reports.results import DecodeMode, RunResult

TITLES = {
    "reward": "mean reward",
    "nll": "-log p per token of the solutions (nats)",
    NO_SIGNAL: "share of groups without a signal",
    "accuracy": "accuracy on test problems, greedy, before and after",
    "format_rate": "completions with one delimiter",
    MEAN_LENGTH: "completion length (tokens)",
    "hidden_ratio": "hidden ratio",
    "kl": "KL to the initial model (k3)",
    "entropy": "entropy of a token (nats)",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_second": "completion tokens per second",
}
OF_RUN = (
    "reward",
    "nll",
    NO_SIGNAL,
    "format_rate",
    MEAN_LENGTH,
    "hidden_ratio",
    "kl",
    "grad_norm",
    "tokens_per_second",
)
OF_COMPARISON = ("reward", MEAN_LENGTH, "hidden_ratio", "kl")
OF_REPORT = ("reward", "nll", "accuracy", MEAN_LENGTH, "hidden_ratio", "kl", "entropy", "tokens_per_second")
DASHES = ["-", "--", ":", "-."]
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]  # Okabe and Ito's
SMOOTH = 5  # updates that a point of an arm's curve is the mean of
SMOOTH_RUN = 10  # the same of a single run's


def plot_run(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one panel a metric over the updates of a run, and its mean over ten of them.

    Args:
        metrics: the rows of metrics.jsonl; an update whose numbers were not finite lacks some.
        path: of the picture.

    """
    names = [name for name in OF_RUN if any(name in row for row in metrics)]
    with _panels(names, (9, 2.2), path) as (_, panels):
        for panel, name in zip(panels, names, strict=True):
            known = [row for row in metrics if name in row]
            steps, values = [row["step"] for row in known], [row[name] for row in known]
            panel.plot(steps, values, color=COLOURS[0], alpha=0.3, linewidth=1)
            panel.plot(steps, smooth(values, SMOOTH_RUN), color=COLOURS[0], linewidth=1.8)


def plot_arms(arms: Mapping[str, Sequence[RunResult]], names: Sequence[str], path: Path) -> None:
    """Draw one panel for each metric that any run has.

    Each arm has a line, the mean over its runs, and a band from the lowest to the highest of them.

    Args:
        arms: an arm's runs, by its label.
        names: of the metrics; "accuracy" is that of the evaluations.
        path: of the picture.

    """
    names = [name for name in names if any(curve(run, name) for runs in arms.values() for run in runs)]
    with _panels(names, (10, 2.5), path) as (figure, panels):
        for panel, name in zip(panels, names, strict=True):
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
        shown = [panel.get_legend_handles_labels() for panel in panels]
        lines = {label: line for found in shown for line, label in zip(*found, strict=True)}
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=4, frameon=False)


@contextmanager
def _panels(names: Sequence[str], size: tuple[float, float], path: Path) -> Iterator[tuple[Figure, list[Any]]]:
    """Yield a figure with a panel for each metric, two in a row of this size in inches; saved after the block."""
    rows = -(-len(names) // 2)
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(size[0], size[1] * rows), layout="constrained")
        panels = list(figure.subplots(rows, 2, squeeze=False).flat)
        for panel in panels[len(names) :]:
            panel.remove()
        for panel, name in zip(panels, names, strict=False):
            panel.set_title(TITLES[name], fontsize=9, loc="left")
            panel.set_xlabel("update")
            panel.grid(alpha=0.2)
        yield figure, panels[: len(names)]
        with files.new_file(path, "wb") as file:
            figure.savefig(file, dpi=120)


def curve(result: RunResult, name: str) -> list[tuple[float, float]]:
    """Return (update, value) of a run, smoothed; none where it has no such metric."""
    steps = result.metrics["step"]
    if name != "accuracy":
        return list(zip(steps, smooth(result.metrics.get(name, []), SMOOTH), strict=False))
    places = {"before": 0.0, "after": steps[-1]}
    return [(places[when], part[DecodeMode.GREEDY].accuracy) for when, part in result.evaluation.phases().items()]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and those just before it, `window` of them where there are so many."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
