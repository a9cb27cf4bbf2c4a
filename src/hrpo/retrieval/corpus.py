"""Passage corpora as they are published, read one passage at a time.

- .jsonl: `id`, `title`, `text`; id and title may be missing. Or `id` and `contents`: a quoted title in a line of its
  own, and the text (the Wikipedia of Search-R1 and FlashRAG).
- .tsv: columns id, text, title under a header, quoted as CSV or not (DPR's Wikipedia, psgs_w100.tsv, and ColBERT's);
  or id and text without a header (MS MARCO's collection.tsv).
- .json: a list of rows as in .jsonl, or an object of titles with their sentences (HippoRAG's); it is read whole.

Each also as .gz.
"""

import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError
from hrpo.tasks.delimited import read_cells
from hrpo.tasks.gunzip import Gunzip

Passage = dict[str, str]  # id, title, text
SUFFIXES = (".jsonl", ".tsv", ".json")
COLUMNS = ["id", "text"]  # of a .tsv without a header


def check_corpus(path: Path) -> None:
    """Refuse what is no corpus by its name.

    Raises:
        InputError: there is no such file, or it is called otherwise.

    """
    if not path.is_file():
        raise InputError("--corpus", f"no file {path}")
    if not path.name.removesuffix(".gz").endswith(SUFFIXES):
        raise InputError("--corpus", f"{path} must end in {', '.join(SUFFIXES)}, or one of these and .gz")


def read_corpus(path: Path) -> Iterator[tuple[Passage, int]]:
    """Yield passages, each with how many bytes of the file have been read.

    Raises:
        InputError: the file is broken, or has other rows; names the line.

    """
    place = f"{path}, line 0"
    with path.open("rb") as file:
        stream: Any = Gunzip(fileobj=file) if path.suffix == ".gz" else file
        try:
            for place, row in _rows(path, stream):
                yield _passage(place, row), file.tell()
        except InputError:
            raise
        except (OSError, EOFError, RecursionError, TypeError, ValueError, zlib.error) as error:
            raise InputError("--corpus", f"cannot be read after {place} ({type(error).__name__}: {error})") from error


def _rows(path: Path, stream: Any) -> Iterator[tuple[str, Any]]:
    """Yield where a row is, for messages, and the row: a mapping, or a line of JSON."""
    name = path.name.removesuffix(".gz")
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n" if name.endswith(".tsv") else "")
    if name.endswith(".tsv"):
        rows = read_cells(text, "\t")
        first, columns = next(rows, (0, COLUMNS))
        if len(columns) == len(COLUMNS) and not {"text", "contents"} & set(columns):
            rows, columns = chain([(first, columns)], rows), COLUMNS
        for number, cells in rows:
            yield f"{path}, line {number}", dict(zip_longest(columns, cells))
    elif name.endswith(".jsonl"):
        for number, line in enumerate(text, 1):
            if line.strip():
                yield f"{path}, line {number}", line
    else:
        whole = json.load(text)
        if isinstance(whole, dict):
            whole = [{"title": title, "text": "".join(sentences)} for title, sentences in whole.items()]
        for number, row in enumerate(whole, 1):
            yield f"{path}, row {number}", row


def _passage(place: str, row: Any) -> Passage:
    try:
        if isinstance(row, str):
            row = json.loads(row)
        if None in row:
            raise ValueError("more cells than the header has")
        title, text = (row.get("title") or "", row["text"]) if "text" in row else _split(row["contents"])
        if not (isinstance(title, str) and isinstance(text, str)):
            raise TypeError("title and text must be text")
        return {"id": str(row.get("id", place.rpartition(" ")[2])), "title": title, "text": text}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError("--corpus", f"{place}: no passage ({type(error).__name__}: {error})") from error


def _split(contents: str) -> tuple[str, str]:
    """Return the title, quoted in a line of its own, and the text."""
    title, _, text = contents.partition("\n")
    if len(title) > 1 and title[0] == title[-1] == '"':
        return title[1:-1], text
    return "", contents
