"""Answers on disk: one Parquet file for each model, task and way to decode, written in parts while it grows.

A part holds the answers to a round of problems and is there whole or not at all, so that an evaluation that was
interrupted asks what the missing parts hold. Each file bears the mark of its evaluation, model, task and way to decode.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hrpo.common.errors import InputError
from hrpo.common.files import write_bytes
from hrpo.evaluate import Answer

SCHEMA = pa.schema(
    [
        ("problem", pa.int64()),  # its place in the test set
        ("sample", pa.int64()),
        ("question", pa.string()),
        ("gold", pa.list_(pa.string())),  # accepted answers
        ("completion", pa.string()),
        ("strict", pa.bool_()),
        ("lenient", pa.bool_()),
        ("length", pa.int64()),  # tokens, EOS included
        ("truncated", pa.bool_()),
        ("mixed", pa.int64()),  # positions where a mixed input was fed
        ("hidden_ratio", pa.float64()),
        ("metric", pa.float64()),  # of tasks that have one
    ]
)
AGAIN = "delete it to ask these questions again"
MARK = b"hrpo.cell"  # in the metadata of the columns


def parts(path: Path) -> list[Path]:
    """Return the parts of a file that is not whole yet."""
    return sorted(_folder(path).glob("*.parquet"))


def part(path: Path, number: int) -> Path:
    """Return where part `number` is, or will be."""
    return _folder(path) / f"{number:06d}.parquet"


def check(path: Path, problems: Sequence[int], samples: int, mark: str) -> None:
    """Refuse a file, a part or a whole one, that does not hold just what it should.

    Args:
        path: of the file.
        problems: whose answers belong in it, by their places in the test set.
        samples: answers to each, side by side.
        mark: of what it belongs to.

    Raises:
        InputError: it is damaged, renamed, or from elsewhere.

    """
    table = _read(path)
    found = zip(table["problem"].to_pylist(), table["sample"].to_pylist(), strict=True)
    if list(found) != list(itertools.product(problems, range(samples))):
        raise InputError("--out", f"{path} holds the answers to other problems", AGAIN)
    if (table.schema.metadata or {}).get(MARK) != mark.encode():
        raise InputError("--out", f"{path} is of another evaluation, model, task or way to decode", AGAIN)


def append(path: Path, number: int, first: int, samples: int, answers: Sequence[Answer], mark: str = "") -> None:
    """Write part `number`: the answers to problems from the `first` on, a problem's `samples` side by side."""
    rows = []
    for place, answer in enumerate(answers):
        gold = [answer.gold] if isinstance(answer.gold, str) else answer.gold
        where = {"problem": first + place // samples, "sample": place % samples}
        rows.append({**dataclasses.asdict(answer), **where, "gold": gold})
    _write(part(path, number), pa.Table.from_pylist(rows, SCHEMA.with_metadata({MARK: mark})))


def finish(path: Path) -> None:
    """Put the parts together."""
    if not path.is_file():
        _write(path, pa.concat_tables([_read(file) for file in parts(path)]).combine_chunks())
    shutil.rmtree(_folder(path), ignore_errors=True)


def load(path: Path) -> list[Answer]:
    """Return the answers of a whole file, in order."""
    rows: list[dict[str, Any]] = _read(path).drop_columns(["problem", "sample"]).to_pylist()
    return [Answer(**row) for row in rows]


def _folder(path: Path) -> Path:
    return path.with_suffix(".parts")


def _read(path: Path) -> Any:
    try:
        table = pq.read_table(path)
        if not table.schema.equals(SCHEMA):
            raise ValueError("it has other columns")
        table.validate(full=True)
    except (OSError, ValueError) as error:  # Arrow's own are among them
        reason = " ".join(str(error).split())
        raise InputError("--out", f"{path} is damaged ({reason:.200})", AGAIN) from error
    return table


def _write(path: Path, table: Any) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue().to_pybytes())
