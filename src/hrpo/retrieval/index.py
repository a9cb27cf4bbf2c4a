"""An index folder: passages, what a retriever needs, and `index.json`, which says how it was made."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hrpo.common.errors import InputError
from hrpo.common.files import check_vacant, new_folder, read_json
from hrpo.retrieval import bm25, dense
from hrpo.retrieval.corpus import Passage, check_corpus
from hrpo.retrieval.store import DAMAGE, Passages, write_passages

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FORMATS = {"bm25": 2, "dense": 1}  # of an index folder, by retriever
AGAIN = "build it again"


def build_index(
    corpus: str,
    index: str,
    *,
    retriever: str = "bm25",
    model: str = "",
    vectors: str = "",
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
) -> int:
    """Index a corpus into a new folder; nothing is left of it where that is interrupted.

    Args:
        corpus: a file as `hrpo.retrieval.corpus` has them.
        index: a new folder.
        retriever: "bm25" or "dense".
        model: of "dense": "" is the embedded one; else a folder or a name on the Hub.
        vectors: of "dense": the passages' vectors, made elsewhere.
        query_prefix: of "dense": put before questions; None is what the model is known to want.
        passage_prefix: the same before passages.

    Returns:
        How many passages there are.

    Raises:
        InputError: something cannot be used; names the option.

    """
    source, target = Path(corpus), Path(index)
    check_corpus(source)
    check_vacant(target, "--index")
    given = {"--model": model, "--vectors": vectors, "--query_prefix": query_prefix, "--passage_prefix": passage_prefix}
    settings: dict[str, object] = {"format": FORMATS[retriever], "retriever": retriever}
    with _installed():
        if retriever == "bm25":
            if meaningless := [option for option, value in given.items() if value]:
                raise InputError(meaningless[0], "is for --retriever dense")
        else:
            if vectors and not Path(vectors).is_file():
                raise InputError("--vectors", f"no file {vectors}")
            encoder, name, query, passage = _encoder(model, query_prefix, passage_prefix)
            settings.update(model=name, query_prefix=query, passage_prefix=passage)
        with new_folder(target) as draft:
            check_vacant(target, "--index")  # another build may have ended just now
            write_passages(source, draft)
            passages = Passages(draft)
            if retriever == "bm25":
                bm25.write(draft, passages)
            elif vectors:
                dense.write_given(draft, passages, Path(vectors), encoder)
            else:
                dense.write(draft, passages, encoder, passage)
            with source.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            settings.update(count=len(passages), corpus=source.name, corpus_sha256=digest)
            (draft / "index.json").write_text(json.dumps(settings, indent=2) + "\n")
    return len(passages)


def _encoder(model: str, query: str | None, passage: str | None) -> tuple["SentenceTransformer", str, str, str]:
    """Return a dense model, its name, and what is put before questions and before passages."""
    name = model or dense.EMBEDDED
    if Path(name).is_dir():
        name = str(Path(name).resolve())
    encoder = dense.load_model(name)
    own = dense.prefixes_of(name, encoder)
    return encoder, name, own[0] if query is None else query, own[1] if passage is None else passage


class Index:
    """An index folder, opened.

    Raises:
        InputError: it is none, was written by another version, or its model cannot be loaded.

    """

    def __init__(self, folder: str) -> None:
        path = Path(folder)
        if not (path / "index.json").is_file():
            raise InputError("--index", f"no index in {path}", "`hrpo retrieve build` makes one")
        self.settings = read_json(path / "index.json", "--index", AGAIN)
        names = isinstance(self.settings, dict) and {"format", "retriever"} <= self.settings.keys()
        if not names or not isinstance(self.settings["retriever"], str):
            raise InputError(
                "--index", f"{path / 'index.json'} is damaged (it names no format or retriever)", str(AGAIN)
            )
        written, current = self.settings["format"], FORMATS.get(self.settings["retriever"])
        if written != current:
            raise InputError(
                "--index",
                f"{path} was written by another version of hrpo (format {written}, this one has {current})",
                AGAIN,
            )
        self.path = path
        with _installed(), _whole(path):
            self.passages = Passages(path)
            if self.settings["retriever"] == "bm25":
                self.numbers = bm25.load(path, len(self.passages))
            else:
                model = dense.load_model(self.settings["model"])
                self.numbers = dense.load(path, len(self.passages), model, self.settings["query_prefix"])

    def search(self, questions: Sequence[str], k: int) -> list[list[Passage]]:
        """Return each question's k best passages, best first; bm25 leaves out those without a word in common."""
        with _whole(self.path):
            return [[self.passages[number] for number in numbers] for numbers in self.numbers(questions, k)]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what damaged files of an index raise, numpy's and bm25s's among them, into one line."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise InputError("--index", f"{path} is damaged ({reason})", AGAIN) from error


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError("hrpo retrieve", f"{error.name} is not installed", "pip install 'hrpo[retrieval]'") from error
