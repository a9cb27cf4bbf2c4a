"""A comparison of finished runs: the numbers of each arm, paired differences, what training changes; as tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hrpo.common.console import clock, print_table
from hrpo.common.markdown import inline
from hrpo.common.markdown import table as markdown_table
from hrpo.common.statistics import holm, mean_interval, paired_t
from hrpo.experiments.results import HOWS, Result
from hrpo.reports.curves import SMOOTH, plot

Run = tuple[str, int]  # arm, seed

# What an arm is told by: its name, which answers, which of their numbers.
MEASURES = {
    "greedy": ("greedy accuracy", "greedy", "accuracy"),
    "sampled": ("sampled accuracy", "sampled", "accuracy"),
    "length": ("length", "sampled", "length"),
    "hidden_ratio": ("hidden ratio", "sampled", "hidden_ratio"),
}
CURVES = {
    "reward": "mean reward",
    "length": "completion length (tokens)",
    "hidden_ratio": "hidden ratio",
    "kl": "KL to the initial model (k3)",
}
TRAINED = {"reward": ".3f", "length": ".1f", "hidden_ratio": ".4f", "kl": ".3f"}  # metric -> how it is written
WINDOW = 10  # updates at either end of training, at most half of them, whose means tell what has changed


def summarize(finished: Mapping[Run, Result]) -> dict[str, Any]:
    """Return the comparison of finished runs: each arm's, from the same seeds.

    arms, seeds, updates, task, problems: what was compared.
    results: arm -> measure -> values by seed, before and after; mean after, and its t-interval over the seeds, none for
        one seed. That of an accuracy is cut to 0..1.
    differences: of each other arm minus the first one, in accuracy, paired by seed: mean, t-interval, p of no
        difference, and p corrected for the number of all these tests (Holm). Empty for one seed.
    training: arm -> metric -> its mean in the first and in the last updates, by seed; what it changes by, and the
        t-interval of that over the seeds. Without the arms that were decoded once more.
    seconds: arm -> mean over the seeds, of all updates.
    """
    arms, seeds = list(dict.fromkeys(arm for arm, _ in finished)), list(dict.fromkeys(seed for _, seed in finished))
    several = len(seeds) > 1
    results: dict[str, Any] = {arm: {} for arm in arms}
    for arm in arms:
        for measure, (_, how, number) in MEASURES.items():
            before, after = (
                [finished[arm, seed]["evaluation"][when][how][number] for seed in seeds] for when in ("before", "after")
            )
            interval = mean_interval(after) if several else None
            if interval and number == "accuracy":  # Student's t knows no bounds, an accuracy has them
                interval = max(interval[0], 0.0), min(interval[1], 1.0)
            results[arm][measure] = {"before": before, "after": after, "mean": _mean(after), "interval": interval}
    tests = [(arm, measure) for arm in arms[1:] for measure in HOWS] if several else []
    found = [paired_t(results[arm][measure]["after"], results[arms[0]][measure]["after"]) for arm, measure in tests]
    corrected = holm([difference.p for difference in found])
    first = finished[arms[0], seeds[0]]
    return {
        "arms": arms,
        "seeds": seeds,
        "updates": first["settings"]["max_steps"],
        "task": first["settings"]["task"]["name"],
        "problems": first["evaluation"]["after"]["greedy"]["problems"],
        "results": results,
        "differences": [
            {"arm": arm, "measure": measure, **difference._asdict(), "p_holm": p}
            for (arm, measure), difference, p in zip(tests, found, corrected, strict=True)
        ],
        "training": {
            arm: changes for arm in arms if (changes := _training([finished[arm, seed]["metrics"] for seed in seeds]))
        },
        "seconds": {arm: _mean([_seconds(finished[arm, seed]) for seed in seeds]) for arm in arms},
    }


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _training(runs: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    names = [name for name in TRAINED if all(name in metrics for metrics in runs)]
    return {name: _change([metrics[name] for metrics in runs]) for name in names}


def _change(curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return what a metric is at first and at last, of each run, and how that differs."""
    window = max(min(WINDOW, len(curves[0]) // 2), 1)
    first, last = [_mean(curve[:window]) for curve in curves], [_mean(curve[-window:]) for curve in curves]
    change = [after - before for before, after in zip(first, last, strict=True)]
    return {
        "updates": window,
        "first": first,
        "last": last,
        "change": _mean(change),
        "interval": mean_interval(change) if len(change) > 1 else None,
    }


def _seconds(result: Result) -> float:
    return float(sum(sum(result["metrics"].get(name, [])) for name in ("rollout_seconds", "update_seconds")))


def result_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: arm, the accuracies before and after, length, hidden ratio, time."""
    rows = []
    for arm in comparison["arms"]:
        row, results = [arm], comparison["results"][arm]
        for measure in HOWS:
            row.append(f"{_mean(results[measure]['before']):.1%}")
            row.append(_with_interval(results[measure], "{:.1%}"))
        row.append(_with_interval(results["length"], "{:.1f}"))
        row.append(_with_interval(results["hidden_ratio"], "{:.3f}"))
        rows.append([*row, clock(comparison["seconds"][arm])])
    return rows


def _with_interval(result: dict[str, Any], form: str) -> str:
    mean, interval = form.format(result["mean"]), result["interval"]
    return mean if interval is None else f"{mean} [{form.format(interval[0])}, {form.format(interval[1])}]"


def difference_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: which difference, of what, how much, p, p corrected."""
    return [
        [
            f"{row['arm']} - {comparison['arms'][0]}",
            MEASURES[row["measure"]][0],
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in (row["difference"], *row["interval"]))),
            p_value(row["p"]),
            p_value(row["p_holm"]),
        ]
        for row in comparison["differences"]
    ]


def p_value(p: float) -> str:
    """Return a p-value as tables show it."""
    return "<.001" if p < 0.001 else f"{p:.3f}"


def training_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: arm, metric, its mean in the first and in the last updates, the change."""
    return [
        [
            arm,
            CURVES[name],
            f"{_mean(found['first']):{TRAINED[name]}}",
            f"{_mean(found['last']):{TRAINED[name]}}",
            _with_interval({**found, "mean": found["change"]}, f"{{:+{TRAINED[name]}}}"),
        ]
        for arm, metrics in comparison["training"].items()
        for name, found in metrics.items()
    ]


HEADER = ["arm", *(how + when for how in HOWS for when in (" before", " after")), "length", "hidden ratio", "time"]
DIFFERENCES = ["difference", "of", "points", "p", "p (Holm)"]
TRAINING = ["arm", "while training", "first updates", "last updates", "change"]


def show(comparison: dict[str, Any]) -> None:
    """Print both tables."""
    print_table(_title(comparison), HEADER, result_rows(comparison))
    if comparison["differences"]:
        print_table("paired over seeds", DIFFERENCES, difference_rows(comparison))


def markdown(comparison: dict[str, Any], report: str = "comparison") -> str:
    """Return REPORT.md."""
    parts = [f"# {inline(_title(comparison))}\n", *markdown_table(HEADER, result_rows(comparison)), ""]
    parts.append(
        "Mean over the seeds and its 95 % interval (Student's t, for accuracies cut to 0..100 %; where every seed has "
        "the same value it has no width, which is no certainty); length and hidden ratio of sampled answers after "
        "training; time of all updates.\n"
    )
    if comparison["differences"]:
        parts += [*markdown_table(DIFFERENCES, difference_rows(comparison)), ""]
        parts.append(
            "Differences in percentage points, paired by seed, which a seed's problems, their order and the answers' "
            f"random numbers belong to; paired t-test, p corrected for {len(comparison['differences'])} tests. Where a "
            "difference is the same in every seed, p is that of flipping signs, 2^(1 - seeds).\n"
        )
    if comparison["training"]:
        parts += [*markdown_table(TRAINING, training_rows(comparison)), ""]
        window = next(found["updates"] for metrics in comparison["training"].values() for found in metrics.values())
        parts.append(
            f"Means of the first and the last {window} updates, of sampled completions, over the seeds; the hidden "
            "ratio of an update in which nothing was mixed is 0.\n"
        )
    parts.append(f"![curves]({quote(report)}.png)\n")
    parts.append(f"Mean over the seeds, {SMOOTH} updates at a time, and the band from their lowest to their highest.\n")
    return "\n".join(parts)


def _title(comparison: dict[str, Any]) -> str:
    seeds, problems = ", ".join(map(str, comparison["seeds"])), comparison["problems"]
    return f"Accuracy on {problems} problems of {comparison['task']}: {comparison['updates']} updates, seeds {seeds}"


def plot_curves(finished: Mapping[Run, Result], path: Path) -> None:
    """Draw the curves of each arm."""
    arms: dict[str, list[Result]] = {}
    for (arm, _), result in finished.items():
        if result["metrics"]:  # what was decoded once more has none
            arms.setdefault(arm, []).append(result)
    plot(arms, CURVES, path)
