"""Tables: how a number is written, those of a run and of a comparison, for a terminal or Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hrpo.common import console, markdown
from hrpo.common.console import clock
from hrpo.common.metrics import MEAN_LENGTH, NO_SIGNAL
from hrpo.reports.comparisons import Comparison
from hrpo.reports.plots import TITLES
from hrpo.reports.results import DecodeMode, Evaluation, Interval, ModeScores, Scores

NONE = "-"  # what stands for a number that there is not
ACCURACIES = ("accuracy", "lenient_accuracy")
# What an arm is told by: its name, which answers, which of their numbers.
MEASURES = {
    "greedy": ("greedy accuracy", DecodeMode.GREEDY, "accuracy"),
    "sampled": ("sampled accuracy", DecodeMode.SAMPLED, "accuracy"),
    "length": ("length", DecodeMode.SAMPLED, "length"),
    "hidden_ratio": ("hidden ratio", DecodeMode.SAMPLED, "hidden_ratio"),
}
TRAINED = {"reward": ".3f", MEAN_LENGTH: ".1f", "hidden_ratio": ".4f", "kl": ".3f"}  # metric -> how it is written


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self, title: str) -> None:
        """Print it."""
        console.print_table(title, list(self.header), [list(row) for row in self.rows])

    def markdown(self) -> list[str]:
        """Return its lines in Markdown, in which every text stays what it is."""
        return markdown.table(self.header, self.rows)


# ---- numbers ------------------------------------------------------------------------------------------------------


def number(value: float | None, form: str, interval: Interval | None = None) -> str:
    """Return a number and its interval, as "0.500 [0.400, 0.600]"; "-" where there is none.

    Args:
        value: the number.
        form: how each is written, as in a format string: ".3f", ".1%".
        interval: of the number.

    """
    if value is None:
        return NONE
    return f"{value:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def percent(share: float, interval: Interval | None = None, form: str = ".1f") -> str:
    """Return a share in percent without the sign, for columns that bear it in their header."""
    return number(100 * share, form, interval and (100 * interval[0], 100 * interval[1]))


def points(difference: float, interval: Interval) -> str:
    """Return a difference of shares in percentage points."""
    return percent(difference, interval, "+.1f")


def p_value(p: float, digits: int = 3) -> str:
    """Return a p-value; one that would be all zeros as less than the last digit."""
    least = f"{10.0**-digits:.{digits}f}".lstrip("0")
    return f"<{least}" if p < 10.0**-digits else f"{p:.{digits}f}"


def accuracy(scores: Scores, name: str = "accuracy") -> str:
    """Return an accuracy with its interval, by the name of its field."""
    return number(getattr(scores, name), ".1%", getattr(scores, f"{name}_interval"))


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


# ---- a run --------------------------------------------------------------------------------------------------------


def run_rows(evaluation: Evaluation, metrics: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of a run's final table: what, before, after.

    Args:
        evaluation: of the run.
        metrics: the rows of metrics.jsonl; their first and last values are shown.

    """
    phases = (evaluation.before, evaluation.after)
    rows = []
    for mode in DecodeMode:
        parts = [phase.get(mode) for phase in phases]
        for name in ACCURACIES:
            label = name.replace("_", " ")
            rows.append([f"{mode} {label}", *(accuracy(part, name) if part else NONE for part in parts)])
        if any(part and part.metric is not None for part in parts):
            rows.append([f"{mode} metric", *(_metric(part) for part in parts)])
    sampled = [phase.get(DecodeMode.SAMPLED) for phase in phases]
    for label, name, form in (
        ("sampled length (tokens)", "length", ".1f"),
        ("completions with one delimiter", "format_rate", ".1%"),
        ("hidden ratio", "hidden_ratio", ".4f"),
    ):
        rows.append([label, *(number(getattr(part, name) if part else None, form) for part in sampled)])
    for label, name, form in (
        ("training reward", "reward", ".3f"),
        ("groups without a signal", NO_SIGNAL, ".0%"),
        ("training nll (nats per token)", "nll", ".3f"),
    ):
        values = [row[name] for row in metrics if name in row]  # not in updates where it was not finite
        if values:
            rows.append([label, number(values[0], form), number(values[-1], form)])
    return rows


def scores_table(scores: ModeScores) -> Table:
    """Return the table of what one model scored, a column for each way to decode."""
    columns = [scores[mode] for mode in DecodeMode]
    rows = [["problems", *(str(column.problems) for column in columns)]]
    for name in ACCURACIES:
        rows.append([f"{name.replace('_', ' ')} [95 %]", *(accuracy(column, name) for column in columns)])
    if any(column.metric is not None for column in columns):
        rows.append(["metric [95 %]", *(_metric(column) for column in columns)])
    for label, name, form in (
        ("length (tokens)", "length", ".1f"),
        ("cut off at the limit", "truncation_rate", ".1%"),
        ("one delimiter", "format_rate", ".1%"),
        ("hidden ratio", "hidden_ratio", ".4f"),
    ):
        rows.append([label, *(number(getattr(column, name), form) for column in columns)])
    return Table(["", *DecodeMode], rows)


def _metric(scores: Scores | None) -> str:
    return number(scores.metric, ".3f", scores.metric_interval) if scores else NONE


# ---- a comparison -------------------------------------------------------------------------------------------------


def results_table(comparison: Comparison) -> Table:
    """Return the numbers of each arm: accuracies before and after, length, hidden ratio, time."""
    rows = []
    for arm in comparison.arms:
        row, results = [arm], comparison.results[arm]
        for mode in DecodeMode:
            row += [f"{mean(results[mode].before):.1%}", number(results[mode].mean, ".1%", results[mode].interval)]
        for name, form in (("length", ".1f"), ("hidden_ratio", ".3f")):
            row.append(number(results[name].mean, form, results[name].interval))
        rows.append([*row, clock(comparison.seconds[arm])])
    phases = [f"{mode} {phase}" for mode in DecodeMode for phase in ("before", "after")]
    return Table(["arm", *phases, "length", "hidden ratio", "time"], rows)


def differences_table(comparison: Comparison, unit: str = "points") -> Table:
    """Return the differences to the first arm, with p and p corrected; `unit` heads the column of differences."""
    rows = [
        [
            f"{row.arm} - {comparison.arms[0]}",
            MEASURES[row.measure][0],
            points(row.difference, row.interval),
            p_value(row.p),
            p_value(row.p_holm),
        ]
        for row in comparison.differences
    ]
    return Table(["difference", "of", unit, "p", "p (Holm)"], rows)


def training_table(comparison: Comparison) -> Table:
    """Return what training changes: arm, metric, its mean in the first and in the last updates, the change."""
    rows = [
        [
            arm,
            TITLES[name],
            number(mean(found.first), TRAINED[name]),
            number(mean(found.last), TRAINED[name]),
            number(found.change, f"+{TRAINED[name]}", found.interval),
        ]
        for arm, metrics in comparison.training.items()
        for name, found in metrics.items()
    ]
    return Table(["arm", "while training", "first updates", "last updates", "change"], rows)
