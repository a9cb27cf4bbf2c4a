"""Locks of the file system: who writes in a folder, or a file, is alone with it."""

import functools
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from filelock import lock_descriptor

from hrpo.common.errors import InputError
from hrpo.common.output import warn


class Lock:
    """Keeps other processes out of a folder or a file until `release`, or until the object or the process ends.

    A file system that has no locks, as some of networks, is said, and keeps nobody out.

    Args:
        place: what is locked; it exists.
        refused: what is raised where another process has it.

    Raises:
        InputError: another process has it.

    """

    held: ClassVar[WeakValueDictionary[Path, "Lock"]] = WeakValueDictionary()  # by this process, of those shared in it

    def __init__(self, place: Path, refused: InputError) -> None:
        self.place, self.key, self.handle = place.absolute(), place.resolve(), os.open(place, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self.handle)
        try:
            if not lock_descriptor(self.handle, blocking=False):
                raise refused
        except OSError as error:
            _warn_once(f"no locks here ({error.strerror}), so nothing keeps a second process from writing to it too")

    @classmethod
    def of(cls, folder: Path, refused: InputError) -> "Lock":
        """Return the lock of a folder, which is made if need be; the same one within a process."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = cls.held.get(folder.resolve())
        if lock is None or lock.where() != lock.place:
            lock = cls(folder, refused)
            cls.held[lock.key] = lock
        return lock

    def where(self) -> Path | None:
        """Return where the folder is by now, on Linux also after it was renamed; None if it cannot be found."""
        for place in (self.place, Path(os.path.realpath(f"/proc/self/fd/{self.handle}"))):
            if place.exists() and os.path.samestat(place.stat(), os.fstat(self.handle)):
                return place
        return None

    def release(self) -> None:
        """Let others in."""
        if self.held.get(self.key) is self:
            del self.held[self.key]
        self.close()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[bool]:
    """Let one process at a time do what is inside, and yield whether that is so: some file systems have no locks.

    Args:
        folder: what it is about, made unless it is there.

    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            locked = lock_descriptor(handle)
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(handle)


@functools.cache
def _warn_once(what: str) -> None:
    warn(f"hrpo: warning: {what}")
