"""Reading .gz files that may be made to fill the memory: gzip packs a gigabyte of zeros into a megabyte."""

import gzip
from typing import Any

MOST_AT_ONCE = 1 << 20
SMALL = 8 << 20  # bytes that may come out of any file, however small
MOST_TIMES = 100  # text shrinks to a third or a tenth of its size, what repeats itself a thousandfold


class Gunzip(gzip.GzipFile):
    """A .gz file opened for reading, that breaks off where far more comes out than goes in.

    Raises:
        gzip.BadGzipFile: it does.

    """

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, all that are left where it is negative."""
        if size is not None and 0 <= size <= MOST_AT_ONCE:
            return self._checked(super().read(size))
        parts, left = [], float("inf") if size is None or size < 0 else size
        while left > 0 and (part := self._checked(super().read(int(min(left, MOST_AT_ONCE))))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def read1(self, size: int = -1) -> bytes:
        """Return what one read of the file gives; text is read by this."""
        return self._checked(super().read1(size))

    def _checked(self, data: bytes) -> bytes:
        packed: Any = self.fileobj
        if self.tell() > SMALL and self.tell() > MOST_TIMES * packed.tell():
            raise gzip.BadGzipFile(f"over {MOST_TIMES} times larger unpacked; unpack it yourself if it is to be so")
        return data
