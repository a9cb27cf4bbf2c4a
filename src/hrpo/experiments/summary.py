"""A comparison of finished runs: the numbers of each arm, paired differences, what training changes; as tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from hrpo.common.markdown import inline
from hrpo.common.statistics import holm, mean_interval, paired_t
from hrpo.reports.comparisons import Change, Comparison, Measure, PairedDifference
from hrpo.reports.plots import OF_COMPARISON, SMOOTH, plot_arms
from hrpo.reports.results import DecodeMode, Interval, RunResult
from hrpo.reports.tables import MEASURES, TRAINED, differences_table, mean, results_table, training_table

Run = tuple[str, int]  # arm, seed

WINDOW = 10  # updates at either end of training, at most half of them, whose means tell what has changed


def summarize(finished: Mapping[Run, RunResult]) -> Comparison:
    """Return the comparison of finished runs: each arm's, from the same seeds.

    Intervals are Student's t over the seeds, differences are tested by the paired t-test, and their p are corrected
    for the number of all these tests (Holm).
    """
    arms, seeds = list(dict.fromkeys(arm for arm, _ in finished)), list(dict.fromkeys(seed for _, seed in finished))
    runs = {arm: [finished[arm, seed] for seed in seeds] for arm in arms}
    results = {arm: {name: _measure(runs[arm], name) for name in MEASURES} for arm in arms}
    first = runs[arms[0]][0]
    return Comparison(
        arms=arms,
        seeds=seeds,
        updates=first.settings["max_steps"],
        task=first.settings["task"]["name"],
        problems=first.evaluation.after[DecodeMode.GREEDY].problems,
        results=results,
        differences=_differences(arms, results) if len(seeds) > 1 else [],
        training={arm: changes for arm in arms if (changes := _training([run.metrics for run in runs[arm]]))},
        seconds={arm: mean([run.seconds for run in runs[arm]]) for arm in arms},
    )


def cut(interval: Interval) -> Interval:
    """Return the interval of an accuracy within 0..1: Student's t knows no bounds, an accuracy has them."""
    return max(interval[0], 0.0), min(interval[1], 1.0)


def _measure(runs: Sequence[RunResult], name: str) -> Measure:
    _, mode, field = MEASURES[name]
    before = [getattr(run.evaluation.before[mode], field) for run in runs]
    after = [getattr(run.evaluation.after[mode], field) for run in runs]
    interval = mean_interval(after) if len(runs) > 1 else None
    return Measure(before, after, mean(after), cut(interval) if interval and field == "accuracy" else interval)


def _differences(arms: Sequence[str], results: Mapping[str, Mapping[str, Measure]]) -> list[PairedDifference]:
    tests = [(arm, mode.value) for arm in arms[1:] for mode in DecodeMode]
    found = [paired_t(results[arm][name].after, results[arms[0]][name].after) for arm, name in tests]
    corrected = holm([difference.p for difference in found])
    return [
        PairedDifference(arm, name, *difference, p)
        for (arm, name), difference, p in zip(tests, found, corrected, strict=True)
    ]


def _training(runs: Sequence[Mapping[str, list[float]]]) -> dict[str, Change]:
    names = [name for name in TRAINED if all(name in metrics for metrics in runs)]
    return {name: _change([metrics[name] for metrics in runs]) for name in names}


def _change(curves: Sequence[Sequence[float]]) -> Change:
    """Return what a metric is at first and at last, of each run, and how that differs."""
    window = max(min(WINDOW, len(curves[0]) // 2), 1)
    first, last = [mean(curve[:window]) for curve in curves], [mean(curve[-window:]) for curve in curves]
    change = [after - before for before, after in zip(first, last, strict=True)]
    return Change(window, first, last, mean(change), mean_interval(change) if len(change) > 1 else None)


def show(comparison: Comparison) -> None:
    """Print the results and the differences."""
    results_table(comparison).show(_title(comparison))
    if comparison.differences:
        differences_table(comparison).show("paired over seeds")


def markdown(comparison: Comparison, report: str = "comparison") -> str:
    """Return REPORT.md."""
    parts = [f"# {inline(_title(comparison))}\n", *results_table(comparison).markdown(), ""]
    parts.append(
        "Mean over the seeds and its 95 % interval (Student's t, for accuracies cut to 0..100 %; where every seed has "
        "the same value it has no width, which is no certainty); length and hidden ratio of sampled answers after "
        "training; time of all updates.\n"
    )
    if comparison.differences:
        parts += [*differences_table(comparison).markdown(), ""]
        parts.append(
            "Differences in percentage points, paired by seed, which a seed's problems, their order and the answers' "
            f"random numbers belong to; paired t-test, p corrected for {len(comparison.differences)} tests. Where a "
            "difference is the same in every seed, p is that of flipping signs, 2^(1 - seeds).\n"
        )
    if comparison.training:
        parts += [*training_table(comparison).markdown(), ""]
        window = next(found.updates for metrics in comparison.training.values() for found in metrics.values())
        parts.append(
            f"Means of the first and the last {window} updates, of sampled completions, over the seeds; the hidden "
            "ratio of an update in which nothing was mixed is 0.\n"
        )
    parts.append(f"![curves]({quote(report)}.png)\n")
    parts.append(f"Mean over the seeds, {SMOOTH} updates at a time, and the band from their lowest to their highest.\n")
    return "\n".join(parts)


def _title(comparison: Comparison) -> str:
    asked = f"Accuracy on {comparison.problems} problems of {comparison.task}"
    return f"{asked}: {comparison.updates} updates, seeds {', '.join(map(str, comparison.seeds))}"


def plot_curves(finished: Mapping[Run, RunResult], path: Path) -> None:
    """Draw the curves of each arm."""
    arms: dict[str, list[RunResult]] = {}
    for (arm, _), result in finished.items():
        if result.metrics:  # what was decoded once more has none
            arms.setdefault(arm, []).append(result)
    plot_arms(arms, OF_COMPARISON, path)
