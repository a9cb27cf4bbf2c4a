"""Atomic writes: a file or folder is there whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hrpo.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def check_vacant(path: Path) -> None:
    """Refuse a place for a new folder where something is already."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"--out: {path} is there already and not empty; name a new folder")


@contextmanager
def new_folder(path: Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name once the block has ended well.

    Where `path` exists already, files of other names move over from it, but for those that match a pattern of
    `replaces`.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for file in (file for file in draft.rglob("*") if file.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if not path.exists():
        draft.rename(path)
        return
    old = path.with_name(path.name + ".old")
    path.rename(old)
    draft.rename(path)
    for item in old.iterdir():
        if not (path / item.name).exists() and not any(item.match(pattern) for pattern in replaces):
            item.rename(path / item.name)
    shutil.rmtree(old)
