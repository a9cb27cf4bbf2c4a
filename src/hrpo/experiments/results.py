"""What is kept of a finished run, small enough for a repository: settings, numbers, what was right, metrics."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hrpo.common import files
from hrpo.common.errors import InputError
from hrpo.common.files import read_lines
from hrpo.common.version import __version__
from hrpo.config.old_names import with_new_names
from hrpo.config.schema import TrainConfig
from hrpo.experiments.cross_mode import decode

HOWS = ("greedy", "sampled")
DIGITS = 5  # that a kept metric has

Result = dict[str, Any]  # see `result_in`


def evaluation_in(folder: Path) -> dict[str, Any]:
    """Return a run folder's evaluation so far."""
    path = folder / "evaluation.json"
    evaluation: dict[str, Any] = files.read_json(path, "results", "delete it") if path.is_file() else {}
    return evaluation


def result_in(folder: Path, settings: Any, field: str, fix: str) -> Result:
    """Return what is kept of a run, from its folder.

    settings: all of them; versions: of hrpo, torch and Python.
    evaluation: evaluation.json.
    right: "before" and "after" -> "greedy" and "sampled" -> a 1 or 0 for each test problem, strict; "" if not yet.
    metrics: name -> a value for each update, five digits; none that an update lacks, as a skipped one does.

    Raises:
        InputError: the folder is damaged; begins with `field` and ends with `fix`.

    """
    with _damage_told(folder, field, fix):
        rows = read_lines(folder / "metrics.jsonl")
        names = [name for name in rows[0] if all(name in row for row in rows)]
        result = {
            "run": folder.name,
            "settings": settings,
            "versions": _versions(),
            "evaluation": evaluation_in(folder),
            "right": {
                when: {
                    how: "".join(str(int(row["strict"])) for row in read_lines(folder / f"answers-{when}-{how}.jsonl"))
                    for how in HOWS
                }
                for when in ("before", "after")
            },
            "metrics": {name: [_short(row[name]) for row in rows] for name in names},
        }
    return checked(result, folder, field, fix)


def checked(result: Any, place: Path, field: str, fix: str) -> Result:
    """Return a result, its settings by the names of this version, looked through for what tables and curves read.

    Raises:
        InputError: something is missing, or of another kind; begins with `field` and ends with `fix`.

    """
    with _damage_told(place, field, fix):
        settings, _ = with_new_names(result["settings"])
        metrics, numbers = result["metrics"], list[Any]()
        words = [result["run"], settings["task"]["name"]]
        if not metrics and "decoded" not in result:
            raise ValueError("it has no update")
        if "after" in result["evaluation"] and "before" not in result["evaluation"]:
            raise ValueError("it was not evaluated before training")
        for when, part in result["evaluation"].items():
            for how in HOWS:
                marks, problems = result["right"][when][how], part[how]["problems"]
                if not isinstance(marks, str) or len(marks) != problems or not set(marks) <= {"0", "1"}:
                    raise ValueError(f"not every answer {when} training, {how}, is marked as right or wrong")
                low, high = part[how]["accuracy_interval"]
                numbers += [low, high, *(part[how][name] for name in ("accuracy", "length", "hidden_ratio"))]
        for name, values in metrics.items():
            if len(values) != len(metrics["step"]) or not values:
                raise ValueError(f"{name} has not a value for each update")
            numbers += values
        numbers += [settings["seed"], settings["max_steps"], settings["eval"]["problems"]]
        if not all(isinstance(word, str) for word in words) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError("a name is no text, or a number none")
    found: Result = {**result, "settings": settings}
    return found


@contextmanager
def _damage_told(place: Path, field: str, fix: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{field}: {place} is damaged ({type(error).__name__}: {error}); {fix}") from error


def decoded_results(run: TrainConfig, modes: Sequence[str], trained: Result) -> Iterator[tuple[str, Result]]:
    """Yield what is kept of a run decoded once more: `decoded`, the mode, and as "after" what came out in it."""
    for mode, numbers, answers in decode(run, modes):
        right = {how: "".join(str(int(answer.strict)) for answer in part) for how, part in answers.items()}
        yield (
            mode,
            {
                "run": trained["run"],
                "decoded": mode,
                "settings": trained["settings"],
                "versions": _versions(),
                "evaluation": {**trained["evaluation"], "after": numbers},
                "right": {**trained["right"], "after": right},
                "metrics": {},
            },
        )


def _versions() -> dict[str, str]:
    return {"hrpo": __version__, "torch": version("torch"), "python": platform.python_version()}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
