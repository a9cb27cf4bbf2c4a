"""The passages of an index: one JSON line each, found by number through a table of offsets."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError

from hrpo.common.console import bar
from hrpo.common.errors import InputError
from hrpo.retrieval.corpus import Passage, read_corpus

MEGABYTE = 1_000_000
# What reading damaged files raises; numpy parses the head of a .npy file as Python.
DAMAGE = (
    *(AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RecursionError),
    *(SyntaxError, TokenError, TypeError, ValueError),
)
SHOWN_EVERY = 10.0  # seconds between lines of progress, off a terminal


def write_passages(corpus: Path, folder: Path) -> None:
    """Copy a corpus into an index folder; holds one passage at a time, and 8 bytes for each.

    Raises:
        InputError: the corpus cannot be read, or is empty.

    """
    import numpy as np

    offsets, at = array("q"), 0
    size = max(1, corpus.stat().st_size // MEGABYTE)
    with (folder / "passages.jsonl").open("wb") as file, bar("reading, MB", size) as progress:
        for passage, read in read_corpus(corpus):
            line = json.dumps(passage, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            offsets.append(at)
            at += file.write(line)
            if read // MEGABYTE > progress.done:
                progress.advance(read // MEGABYTE - progress.done, f"{len(offsets):,} passages", every=SHOWN_EVERY)
    if not offsets:
        raise InputError("--corpus", f"no passages in {corpus}")
    np.save(folder / "offsets.npy", np.frombuffer(offsets, dtype=np.int64))


class Passages:
    """The passages of an index folder by number, read from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.path = folder / "passages.jsonl"
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
        self.file = self.path.open("rb")
        if self.offsets.dtype != np.int64 or self.offsets.ndim != 1:
            raise ValueError(f"{folder / 'offsets.npy'} holds no offsets")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> Passage:
        self.file.seek(int(self.offsets[number]))
        passage: Passage = json.loads(self.file.readline())
        return passage

    def texts(self) -> Iterator[str]:
        """Yield what is indexed of each passage: title and text, a line each."""
        with self.path.open("rb") as file:
            for passage in map(json.loads, file):
                yield f"{passage['title']}\n{passage['text']}".strip()
