"""Rows of cells separated by tabs or commas, in files that quote their cells, in files that do not, and in both.

A row is read as quoted, with separators and line ends within its cells, where it keeps to the rules of CSV: a cell
that begins with a quotation mark doubles those inside, and ends with one. In any other row the marks are text, and the
row ends with its line, so that a mark which never closes costs no row after it. Lines that could be rows each, with as
many cells as the file's first row, or one row together, are rows each; unless quoting is all that marks have been for
so far.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator

csv.field_size_limit(
    1 << 27
)  # characters; of a passage, but also of what is read in vain after a mark that never closes


def read_cells(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    r"""Yield the cells of each row that is not empty, with the number of its last line.

    Every row has as many cells as the first one, if it can be read so.

    Args:
        lines: of the file, each with its end, "\n" or "\r\n".
        separator: between cells, a tab or a comma.

    """
    waiting, source, at, width = deque[str](), iter(lines), 0, 0
    needed = bare = False  # whether a cell could not have been written without quotes, and whether a mark was text
    while (line := waiting.popleft() if waiting else next(source, "")) != "":
        at += 1
        if not line.strip("\r\n"):
            continue
        cells = _split(line, separator)
        if '"' in line:
            taken = [line]
            quoted = _quoted(taken, waiting, source, separator)
            fits = quoted not in ([], cells) and (len(quoted) == width or len(cells) != width)
            rows = len(taken) > 1 and all(len(_split(other, separator)) == width for other in taken)
            if fits and (not rows or (needed and not bare)):
                cells = quoted
                at += len(taken) - 1
                needed = needed or any(sign in cell for cell in cells for sign in ('"', "\n", separator))
            else:
                waiting.extendleft(reversed(taken[1:]))
                bare = True
        width = width or len(cells)
        yield at, cells


def _quoted(taken: list[str], waiting: deque[str], source: Iterator[str], separator: str) -> list[str]:
    """Return the cells of a row quoted as CSV, and add the lines that it goes on in to `taken`; none if it is not."""

    def following() -> Iterator[str]:
        yield taken[0]
        while (line := waiting.popleft() if waiting else next(source, "")) != "":
            taken.append(line)
            yield line

    try:
        return next(csv.reader(following(), delimiter=separator, strict=True))
    except csv.Error:
        return []


def _split(line: str, separator: str) -> list[str]:
    return line.removesuffix("\n").removesuffix("\r").split(separator)
