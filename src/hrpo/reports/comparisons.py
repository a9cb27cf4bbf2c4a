"""What is compared, as types: the arms of a study, and the models of a benchmark."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from hrpo.reports.results import Interval, ModeScores, mode_scores, read


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of an arm: its values by seed, the mean of those after training, and its interval over the seeds."""

    before: list[float]
    after: list[float]
    mean: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """How much an arm differs from the first one in a measure, paired by seed; p_holm is corrected for all of them."""

    arm: str
    measure: str
    difference: float
    interval: Interval
    p: float
    p_holm: float


@dataclasses.dataclass(frozen=True)
class Change:
    """What training changes in a metric: its means in the first and the last `updates`, by seed, and the difference."""

    updates: int
    first: list[float]
    last: list[float]
    change: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Finished runs of several arms from the same seeds.

    Args:
        arms: their names; the first is what the others are compared with.
        seeds: of the runs of each.
        updates: of each run.
        task: what they were trained on.
        problems: test problems.
        results: arm -> measure -> its values; no interval for one seed, that of an accuracy is cut to 0..1.
        differences: of each other arm minus the first one, in accuracy. Empty for one seed.
        training: arm -> metric -> what changes. Without the arms that were decoded once more.
        seconds: arm -> mean over the seeds, of all updates.

    """

    arms: list[str]
    seeds: list[int]
    updates: int
    task: str
    problems: int
    results: dict[str, dict[str, Measure]]
    differences: list[PairedDifference]
    training: dict[str, dict[str, Change]]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return what a file of it holds."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ModelDifference:
    """How much two models differ in strict accuracy on the same problems of a task."""

    task: str
    how: str
    first: str
    second: str
    problems: int
    difference: float
    interval: Interval
    test: str
    p: float
    p_holm: float


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """results.json of an evaluation: its settings, task -> model -> scores, and any two models compared."""

    settings: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, ModeScores]]
    comparisons: list[ModelDifference]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return an evaluation as a file has it.

        Raises:
            ValueError: see `Scores.from_json`.

        """
        tasks = read(data, "tasks", dict)
        return cls(
            settings=read(data, "settings", dict),
            tasks={
                task: {label: mode_scores(scores) for label, scores in models.items()} for task, models in tasks.items()
            },
            comparisons=[ModelDifference(**row) for row in read(data, "comparisons", list)],
        )
