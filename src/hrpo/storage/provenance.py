"""What a run was begun with, as digests: the files of its base model, or the Hub's commit, and its task's problems."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrpo.common.errors import InputError
from hrpo.common.files import read_json, write_text
from hrpo.models.names import connection_errors, resolve

if TYPE_CHECKING:
    from hrpo.tasks import Example, Task

PROVENANCE_FILE = "provenance.json"  # in a run folder
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.py", "chat_template.*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
OPTIMIZER = "optimizer.safetensors"  # in a checkpoint, but no part of its model
VERSION = re.compile(rb'\s*"transformers_version": "[^"]*",?')  # who wrote a config, which changes nothing
MADE = 20  # problems of a task that makes them when asked for


def base_digests(name: str) -> dict[str, str]:
    """Return the sha256 of each file that a base model is loaded from; of one on the Hub the commit that is used.

    Raises:
        InputError: there is no such model.

    """
    folder = Path(resolve(name))
    if not folder.is_dir():
        return {"commit": hub_commit(str(folder))}
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.name: _digest(path) for path in sorted(files) if path.name != OPTIMIZER}


def check_base(name: str, then: Mapping[str, str]) -> None:
    """Refuse a base model that is not what it was; nothing is known of those from before there were digests.

    Raises:
        InputError: names what has changed.

    """
    changed = _changed(then, base_digests(name)) if then else []
    if changed:
        raise InputError(
            f"model.name: the base model {name} is not as it was trained on ({', '.join(changed)} changed); put that "
            "one back, or train anew on this one"
        )


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
        changed = [f"the base model's {name}" for name in _changed(*models)]
        changed += [f"the {name}" for name in _changed(then["problems"], now["problems"])]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--resume: {path} is damaged ({type(error).__name__}: {error}); {fix}") from error
    if changed:
        raise InputError(
            f"--resume: {', '.join(changed)} changed since the run began (model.name, task.path, task.test_path); put "
            "back what it began with, or give --name for another run"
        )


def hub_commit(name: str) -> str:
    """Return the commit of a model on the Hub that is used: the newest, or the one in the cache.

    Raises:
        InputError: the Hub cannot be reached.

    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json")).parent.name
    except connection_errors() as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.name: cannot fetch {name} from the Hub: {reason}") from error


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        return hashlib.sha256(VERSION.sub(b"", path.read_bytes())).hexdigest()
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Return a file's digest; one that has not changed since is read once."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problems(examples: Sequence[Example]) -> dict[str, Any]:
    """Return how many there are, and the digest of what is asked, right and written; of made ones the first twenty."""
    whole = hashlib.sha256()
    for example in itertools.islice(examples, len(examples) if isinstance(examples, list) else MADE):
        row = [example.question, example.gold, example.solution, dict(example.columns)]
        whole.update(json.dumps(row, skipkeys=True, default=lambda value: type(value).__name__).encode() + b"\n")
    return {"count": len(examples), "sha256": whole.hexdigest()}
