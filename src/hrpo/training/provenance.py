"""What a run began with, kept in its folder: digests of its base model and of its problems, compared on resuming."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrpo.common.errors import InputError
from hrpo.common.files import read_json, write_text
from hrpo.models.digests import changed_names

if TYPE_CHECKING:
    from hrpo.tasks import Example, Task

PROVENANCE_FILE = "provenance.json"  # in a run folder
MADE = 20  # problems of a task that makes them when asked for


def provenance(base_model: str, base_files: Mapping[str, str], task: Task) -> dict[str, Any]:
    """Return what a run folder keeps of what the run was begun with."""
    problems = {"training problems": _problems(task.train), "test problems": _problems(task.test)}
    return {"base_model": base_model, "base_files": dict(base_files), "problems": problems}


def keep_provenance(folder: Path, now: Mapping[str, Any]) -> None:
    """Write it into a run folder."""
    write_text(folder / PROVENANCE_FILE, json.dumps(now, indent=2) + "\n")


def check_provenance(folder: Path, now: Mapping[str, Any]) -> None:
    """Refuse to resume a run with another base model or other problems than it was begun with.

    Raises:
        InputError: names what has changed.

    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():  # begun before there was such a file
        return
    fix = "delete it to go on without this comparison"
    then = read_json(path, "--resume", fix)
    try:
        models = {**then["base_files"], "name": then["base_model"]}, {**now["base_files"], "name": now["base_model"]}
        changed = [f"the base model's {name}" for name in changed_names(*models)]
        changed += [f"the {name}" for name in changed_names(then["problems"], now["problems"])]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("--resume", f"{path} is damaged ({type(error).__name__}: {error})", fix) from error
    if changed:
        raise InputError(
            "--resume",
            f"{', '.join(changed)} changed since the run began (model.name, task.path, task.test_path)",
            "put back what it began with, or give --name for another run",
        )


def _problems(examples: Sequence[Example]) -> dict[str, Any]:
    """Return how many there are, and the digest of what is asked, right and written; of made ones the first twenty."""
    whole = hashlib.sha256()
    for example in itertools.islice(examples, len(examples) if isinstance(examples, list) else MADE):
        row = [example.question, example.gold, example.solution, dict(example.columns)]
        whole.update(json.dumps(row, skipkeys=True, default=lambda value: type(value).__name__).encode() + b"\n")
    return {"count": len(examples), "sha256": whole.hexdigest()}
