"""What is kept of a finished run: made from its folder, read again, decoded once more."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hrpo.common import files
from hrpo.common.errors import InputError
from hrpo.common.files import read_lines
from hrpo.common.metrics import read_metrics
from hrpo.common.version import __version__
from hrpo.evaluate import Answer
from hrpo.reports.results import PHASES, DecodeMode, Evaluation, RunResult, mode_scores

DIGITS = 5  # that a kept metric has


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return what the evaluation.json of a run folder holds so far."""
    path = folder / "evaluation.json"
    evaluation: dict[str, Any] = files.read_json(path, "results", "delete it") if path.is_file() else {}
    return evaluation


def result_of_run(folder: Path, settings: Any, field: str, fix: str) -> RunResult:
    """Return what is kept of a run, from its folder.

    Args:
        folder: of the run.
        settings: all of them.
        field: what an error begins with.
        fix: what it ends with.

    Raises:
        InputError: the folder is damaged.

    """
    with _damage_told(folder, field, fix):
        rows = read_metrics(folder)
        names = [name for name in rows[0] if all(name in row for row in rows)]
        result = {
            "run": folder.name,
            "settings": settings,
            "versions": _versions(),
            "evaluation": read_evaluation(folder),
            "right": {
                phase: {mode.value: _marks(read_lines(folder / f"answers-{phase}-{mode}.jsonl")) for mode in DecodeMode}
                for phase in PHASES
            },
            "metrics": {name: [_short(row[name]) for row in rows] for name in names},
        }
        return RunResult.from_json(result)


def load_result(data: Any, place: Path, field: str, fix: str) -> RunResult:
    """Return a result from what a file holds, its settings by the names of this version.

    Args:
        data: what it holds.
        place: of the file.
        field: what an error begins with.
        fix: what it ends with.

    Raises:
        InputError: something is missing, or of another kind.

    """
    with _damage_told(place, field, fix):
        return RunResult.from_json(data)


def decoded_result(
    trained: RunResult, mode: str, numbers: dict[str, Any], answers: Mapping[str, Sequence[Answer]]
) -> RunResult:
    """Return what is kept of a run decoded once more in another mode: as "after", what came out in it.

    Args:
        trained: what is kept of the run.
        mode: that it was decoded in.
        numbers: that came out, by "greedy" and "sampled".
        answers: the same.

    """
    right = {name: _marks([{"strict": answer.strict} for answer in part]) for name, part in answers.items()}
    return RunResult(
        run=trained.run,
        decoded=mode,
        settings=trained.settings,
        versions=_versions(),
        evaluation=Evaluation(trained.evaluation.before, mode_scores(numbers)),
        right={**trained.right, "after": right},
        metrics={},
    )


@contextmanager
def _damage_told(place: Path, field: str, fix: str) -> Iterator[None]:
    """Turn what reading a file of unknown content raises into one line."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(field, f"{place} is damaged ({type(error).__name__}: {error})", fix) from error


def _marks(answers: Sequence[dict[str, Any]]) -> str:
    return "".join(str(int(answer["strict"])) for answer in answers)


def _versions() -> dict[str, str]:
    return {"hrpo": __version__, "torch": version("torch"), "python": platform.python_version()}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
