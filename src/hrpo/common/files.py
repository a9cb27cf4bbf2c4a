"""Atomic writes: a file or folder is there whole or not at all."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from hrpo.common.errors import InputError
from hrpo.common.locks import Lock

_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")


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
    """Yield a file of a temporary name that takes `path` once the block has ended well.

    Raises:
        InputError: another process is writing it.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.touch()
    with _alone(draft, path):
        try:
            with draft.open(mode, encoding="utf-8" if mode == "w" else None) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    sync(path.parent)


@contextmanager
def _alone(draft: Path, path: Path) -> Iterator[None]:
    """Within it, no other process writes the draft of `path`; the draft of one that was killed is free."""
    refused = InputError(str(path), "another process is writing it", "wait for it, or name another")
    lock = Lock(draft, refused)
    try:
        if lock.where() != lock.place:  # it has just been renamed
            raise refused
        yield
    finally:
        lock.release()


def sync(path: Path) -> None:
    """See a file's content, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a folder, on some network file systems
            raise
    finally:
        os.close(handle)


def link(path: Path, target: str) -> None:
    """Make a link to something beside it, in place of the one that is there."""
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(path)


def is_full(error: Exception) -> bool:
    """Whether a write failed for want of room, or at a limit of a file's size.

    safetensors has an error of its own for it, with the system's words; NumPy counts what it could write, and has none.
    """
    words = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return any(text in str(error) for text in words) or _CUT_SHORT.fullmatch(str(error)) is not None


def read_json(path: Path, field: str, fix: str) -> Any:
    """Return what a JSON file of ours holds.

    Raises:
        InputError: it holds no JSON; begins with `field` and ends with `fix`.

    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(field, f"{path} is damaged ({error})", fix) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; none where it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


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
        raise InputError(field, f"cannot write in {folder} ({error.strerror})", "name another folder") from error


def check_links(folder: Path, field: str) -> None:
    """Refuse a folder with links to what lies outside: that would go into what is made of it.

    Those of the Hub's cache, where every file is a link, lead within the cache.

    Raises:
        InputError: names `field` and the link.

    """
    from huggingface_hub.constants import HF_HUB_CACHE

    own, cache = folder.resolve(), Path(HF_HUB_CACHE).resolve()
    inside = cache if own.is_relative_to(cache) else own
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise InputError(
                field,
                f"{path} is a link to {path.resolve()}, outside of the folder",
                "copy the file there, or delete the link",
            )


def check_vacant(path: Path, option: str = "--out") -> None:
    """Refuse a place for a new folder where something is already, or where nothing can be written."""
    check_writable(path.parent, option)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(option, f"{path} is there already and not empty", "name a new folder")


@contextmanager
def new_folder(path: Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name once the block has ended well.

    Where `path` exists already, files of other names are copied from it, but for those that match a pattern of
    `replaces`. Killed at any moment, the old or the new folder is whole; where the kill came between the two renames,
    the old one waits as NAME.replaced, and the next write puts it back first.

    Raises:
        InputError: another process is writing it.

    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(path.name + suffix) for suffix in (".tmp", ".replaced"))
    draft.mkdir(exist_ok=True)
    with _alone(draft, path):
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        for leftover in draft.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        try:
            yield draft
            for item in path.iterdir() if path.exists() else ():
                if not (draft / item.name).exists() and not any(item.match(pattern) for pattern in replaces):
                    _copy(item, draft / item.name)
            for item in (*draft.rglob("*"), draft):
                if not item.is_symlink():
                    sync(item)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if path.exists():
            path.rename(old)
        draft.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _copy(item: Path, to: Path) -> None:
    """Copy a file or folder; links stay links."""
    if item.is_dir() and not item.is_symlink():
        shutil.copytree(item, to, symlinks=True)
    else:
        shutil.copy2(item, to, follow_symlinks=False)


def remove_folder(path: Path) -> None:
    """Delete a folder in a way that no part of it is taken for the whole: it loses its name first."""
    draft = path.with_name(path.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    path.rename(draft)
    shutil.rmtree(draft)
