"""What a base model was when a run began with it: the sha256 of its files, or its commit on the Hub."""

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError
from hrpo.models.names import connection_errors, resolve

MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.py", "chat_template.*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
OPTIMIZER = "optimizer.safetensors"  # in a checkpoint, but no part of its model
VERSION = re.compile(rb'\s*"transformers_version": "[^"]*",?')  # who wrote a config, which changes nothing


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
    changed = changed_names(then, base_digests(name)) if then else []
    if changed:
        raise InputError(
            "model.name",
            f"the base model {name} is not as it was trained on ({', '.join(changed)} changed)",
            "put that one back, or train anew on this one",
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
        raise InputError("model.name", f"cannot fetch {name} from the Hub: {reason}") from error


def changed_names(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ, or that only one of the two has."""
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
