"""Files of rows as publishers have them: .jsonl, .json, .csv, .tsv or .txt, each also as .gz."""

import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError
from hrpo.tasks.delimited import read_cells
from hrpo.tasks.gunzip import Gunzip

Rows = Iterable[tuple[str, Any]]  # where a row is, for messages, and what a parser gets


def read(path: Path) -> Rows:
    """Return the rows of a file and where they are, read one by one.

    Raises:
        InputError: there are none.

    """
    rows = _read(path)
    first = next(rows, None)
    if first is None:
        raise InputError(str(path), "no rows in it", "give a file with problems")
    return chain([first], rows)


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file and where they are: .jsonl, .json, .csv, .tsv or .txt (tabs), each also as .gz.

    Raises:
        InputError: it is none of these, or broken; names the line.

    """
    name = path.name.removesuffix(".gz")
    suffix = name[name.rfind(".") :]
    try:
        with path.open("rb") as file:
            stream: Any = Gunzip(fileobj=file) if path.suffix == ".gz" else file
            text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {at}", f"cannot be read: no UTF-8 ({error.reason})", "save it as UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"cannot be read ({error})") from error
    if suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):  # no splitlines: U+2028 may be within a row
            if line.strip():
                yield f"{path}, line {number}", _json(line, f"{path}, line {number}")
    elif suffix == ".json":
        rows = _json(text, str(path))
        if isinstance(rows, dict):  # TriviaQA's, or a problem alone in its file, as MATH's authors have it
            rows = rows.get("Data", [rows])
        if not isinstance(rows, list):
            raise InputError(str(path), "must hold a list of rows, or one row", "docs/benchmarks.md lists the forms")
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row
    elif suffix in (".csv", ".tsv", ".txt"):
        # DPR's question files are tab-separated and called .csv
        tabs = suffix != ".csv" or "\t" in text.partition("\n")[0]
        for number, row in read_cells(io.StringIO(text, newline="\n"), "\t" if tabs else ","):
            if [cell.lower() for cell in row] != ["question", "answer"]:
                yield f"{path}, line {number}", row
    else:
        raise InputError(str(path), "must end in .jsonl, .json, .csv, .tsv or .txt, or one of these and .gz")


def _json(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, say, and 100,000 brackets
        raise InputError(
            where,
            f"no JSON ({type(error).__name__}: {error})",
            "mend it: .jsonl has a value a line, .json one in all",
        ) from error
    return value
