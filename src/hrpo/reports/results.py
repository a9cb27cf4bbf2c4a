"""What is measured and kept, as types: what a model scored, a run's evaluation, a finished run.

Each `from_json` reads what lies on the disk and looks it through, so that tables and plots need not; `to_json` gives
just what was read. Files of older versions are of the same form.
"""

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self, TypeVar

from hrpo.common.metrics import with_trl_names
from hrpo.config.old_names import with_new_names

Interval = tuple[float, float]
Kind = TypeVar("Kind")


class DecodeMode(StrEnum):
    """How the answers to test problems are decoded: the likeliest token at each step, or samples."""

    GREEDY = "greedy"
    SAMPLED = "sampled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model scored on some problems in one way to decode; the fields as `hrpo.evaluate.summarize` names them.

    Args:
        problems: how many were asked.
        accuracy: share of answers that are right, with exactly one delimiter.
        accuracy_interval: its 95 % interval, as of the others.
        lenient_accuracy: share of answers that are right.
        lenient_accuracy_interval: its interval.
        metric: mean of the task's own metric, where it has one.
        metric_interval: its interval.
        format_rate: share with exactly one delimiter.
        length: mean number of tokens, EOS included.
        truncation_rate: share that ended at the length limit.
        hidden_ratio: mean over the positions where a mixed input was fed.
        pass_at: pass@k by k as text, where there are samples of a benchmark.
        pass_at_interval: their intervals.
        writing: what `hrpo.evaluation.text_quality.writing_of` says of the completions of a benchmark.

    """

    problems: int
    accuracy: float
    accuracy_interval: Interval
    lenient_accuracy: float
    lenient_accuracy_interval: Interval
    metric: float | None = None
    metric_interval: Interval | None = None
    format_rate: float
    length: float
    truncation_rate: float
    hidden_ratio: float
    pass_at: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pass_at_interval: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    writing: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return scores as a file has them.

        Raises:
            ValueError: something is missing, or of another kind.

        """
        return cls(
            problems=read(data, "problems", int),
            accuracy=_number(data, "accuracy"),
            accuracy_interval=_interval(data, "accuracy_interval"),
            lenient_accuracy=_number(data, "lenient_accuracy"),
            lenient_accuracy_interval=_interval(data, "lenient_accuracy_interval"),
            metric=_number(data, "metric") if "metric" in data else None,
            metric_interval=_interval(data, "metric_interval") if "metric" in data else None,
            format_rate=_number(data, "format_rate"),
            length=_number(data, "length"),
            truncation_rate=_number(data, "truncation_rate"),
            hidden_ratio=_number(data, "hidden_ratio"),
            pass_at=read(data, "pass_at", dict) if "pass_at" in data else {},
            pass_at_interval=read(data, "pass_at_interval", dict) if "pass_at" in data else {},
            writing=read(data, "writing", dict) if "writing" in data else {},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields that have a value."""
        return {name: value for name, value in vars(self).items() if value not in (None, {})}


ModeScores = Mapping[DecodeMode, Scores]  # what a model scored in each way in which it was decoded


def mode_scores(data: Any) -> ModeScores:
    """Return scores by the way to decode, as a file has them.

    Raises:
        ValueError: see `Scores.from_json`.

    """
    return {mode: Scores.from_json(data[mode]) for mode in DecodeMode if mode in _mapping(data)}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """evaluation.json: what a run's model scored before and after training; nothing where it was not evaluated yet."""

    before: ModeScores = dataclasses.field(default_factory=dict)
    after: ModeScores = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return an evaluation as a file has it.

        Raises:
            ValueError: see `Scores.from_json`.

        """
        return cls(**{name: mode_scores(data[name]) for name in PHASES if name in _mapping(data)})

    def phases(self) -> dict[str, ModeScores]:
        """Return "before" and "after", what there is of them."""
        return {name: getattr(self, name) for name in PHASES if getattr(self, name)}

    def to_json(self) -> dict[str, Any]:
        """Return what evaluation.json holds."""
        return {
            name: {mode.value: scores.to_json() for mode, scores in by_mode.items()}
            for name, by_mode in self.phases().items()
        }


PHASES = tuple(field.name for field in dataclasses.fields(Evaluation))


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What is kept of a run, small enough for a repository.

    Args:
        run: the name of its folder.
        settings: all of them.
        versions: of hrpo, torch and Python.
        evaluation: what it scored.
        right: "before" and "after" -> way to decode -> a 1 or 0 for each test problem, strict; "" if not yet.
        metrics: name -> a value for each update, five digits; none that an update lacks, as a skipped one does. Empty
            of what was only decoded.
        decoded: the mode in which a trained run was decoded once more; its `evaluation.after` is of that.

    """

    run: str
    settings: dict[str, Any]
    versions: dict[str, str]
    evaluation: Evaluation
    right: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, list[float]]
    decoded: str | None = None

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return a result as a file has it, looked through for what tables and plots read; settings by their new names.

        Raises:
            ValueError: something is missing, of another kind, or does not fit the rest.

        """
        settings, _ = with_new_names(read(data, "settings", dict))
        result = cls(
            run=read(data, "run", str),
            settings=settings,
            versions=read(data, "versions", dict),
            evaluation=Evaluation.from_json(read(data, "evaluation", dict)),
            right=read(data, "right", dict),
            metrics=with_trl_names(read(data, "metrics", dict), lambda shares: [1 - share for share in shares]),
            decoded=read(data, "decoded", str) if "decoded" in data else None,
        )
        read(read(result.settings, "task", dict), "name", str)
        read(read(result.settings, "eval", dict), "problems", int)
        for name in ("seed", "max_steps"):
            read(result.settings, name, int)
        if not result.metrics and result.decoded is None:
            raise ValueError("it has no update")
        for name, values in result.metrics.items():
            if len(_numbers(result.metrics, name)) != len(result.metrics["step"]) or not values:
                raise ValueError(f"{name} has not a value for each update")
        result._check_right()
        return result

    def _check_right(self) -> None:
        phases = self.evaluation.phases()
        if "after" in phases and "before" not in phases:
            raise ValueError("it was not evaluated before training")
        for phase, by_mode in phases.items():
            for mode in DecodeMode:
                marks = read(read(self.right, phase, dict), mode, str)
                if mode not in by_mode or len(marks) != by_mode[mode].problems or not set(marks) <= {"0", "1"}:
                    raise ValueError(f"not every answer {phase} training, {mode}, is marked as right or wrong")

    @property
    def seconds(self) -> float:
        """How long all updates took."""
        return float(sum(sum(self.metrics.get(name, [])) for name in ("rollout_seconds", "update_seconds")))

    def to_json(self) -> dict[str, Any]:
        """Return what a file of it holds."""
        return {
            "run": self.run,
            **({} if self.decoded is None else {"decoded": self.decoded}),
            "settings": self.settings,
            "versions": self.versions,
            "evaluation": self.evaluation.to_json(),
            "right": self.right,
            "metrics": self.metrics,
        }


# ---- reading ------------------------------------------------------------------------------------------------------


def read(data: Any, name: str, kind: type[Kind]) -> Kind:
    """Return a field of what a file holds.

    Raises:
        ValueError: it is missing, or of another kind.

    """
    value = _mapping(data).get(name)
    if not isinstance(value, kind):
        raise ValueError(f"{name} is missing" if value is None else f"{name} is {value!r:.40}")
    return value


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{data!r:.40} has no fields")
    return data


def _number(data: Any, name: str) -> float:
    value = _mapping(data).get(name)
    if not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r:.40} and no number")
    return value


def _numbers(data: Any, name: str) -> list[float]:
    values = read(data, name, list)
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"{name} has a value that is no number")
    return values


def _interval(data: Any, name: str) -> Interval:
    value = _mapping(data).get(name)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name} is {value!r:.40} and no interval")
    ends = {"low": value[0], "high": value[1]}
    return _number(ends, "low"), _number(ends, "high")
