"""Atomic writes: a file or folder is there whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from hrpo.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    with new_file(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    with new_file(path, "wb") as file:
        file.write(data)


@contextmanager
def new_file(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Yield a file of a temporary name that takes `path` once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_json(path: Path, field: str, fix: str) -> Any:
    """Return what a JSON file of ours holds.

    Raises:
        InputError: it holds no JSON; begins with `field` and ends with `fix`.

    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{field}: {path} is damaged ({error}); {fix}") from error


def check_writable(folder: Path, field: str) -> None:
    """Refuse a folder, there or not yet, that nothing can be written in; an unnamed file tells.

    Raises:
        InputError: names `field`.

    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{field}: cannot write in {folder} ({error.strerror}); name another folder") from error


def check_vacant(path: Path, option: str = "--out") -> None:
    """Refuse a place for a new folder where something is already, or where nothing can be written."""
    check_writable(path.parent, option)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{option}: {path} is there already and not empty; name a new folder")


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
