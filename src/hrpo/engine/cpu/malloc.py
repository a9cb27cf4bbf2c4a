"""The C library's allocator: letting it keep what is freed, and giving back what is free."""

import ctypes
import sys
import time

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_released = 0.0  # when, on the clock of `time.monotonic`


def keep_freed() -> None:
    """Let glibc keep what is freed for the next tensors, until `release_memory`.

    By default it hands the end of the heap back each time, whose pages are then faulted in again: a twentieth of an
    update.
    """
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    _mallopt(M_MMAP_THRESHOLD, 2**25)  # the most it takes; it would not grow there by itself any more


def map_tensors() -> None:
    """Let glibc map each tensor of a megabyte and more by itself, and unmap it when it is freed.

    Gathered weights and their gradients come and go between tensors that stay; in the heap they would leave holes.
    """
    _mallopt(M_MMAP_THRESHOLD, 2**20)


def _mallopt(name: int, value: int) -> None:
    """Set a parameter of the C library's allocator, where it has this call."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(name, value)


def release_memory() -> None:
    """Hand what has been freed on a CPU back to the system, once in a second at most: it takes 15 ms.

    Tensors of ever other sizes leave holes in the heap; glibc keeps them, and the next sizes do not fit.
    """
    global _released
    if sys.platform == "linux" and time.monotonic() - _released > 1:
        _released = time.monotonic()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
