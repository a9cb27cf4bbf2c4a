"""BM25 by bm25s: Lucene's formula, k1 1.5 and b 0.75, English stop words and Snowball stems.

What is written without spaces between words has no words here, but characters and pairs of them, see `words_of`.
"""

import functools
import itertools
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hrpo.common.console import Bar, bar
from hrpo.common.errors import InputError
from hrpo.retrieval.store import SHOWN_EVERY, Passages

STEP = 1000  # passages between two looks at the progress
STRETCH = 1024  # scores
FOLDER = "bm25"
# Scripts that leave no spaces between words; in Korean, which does, particles are written together with their word.
SCRIPTS = ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
UNSPACED = "".join(rf"\p{{scx={name}}}" for name in SCRIPTS)


def write(folder: Path, passages: Passages) -> None:
    """Index passages into a folder. Words lie on disk as 4-byte numbers meanwhile, not in memory as lists.

    Raises:
        InputError: no passage has a word.

    """
    import bm25s

    tokenizer = _tokenizer()
    count, lengths = len(passages), array("q")
    with tempfile.TemporaryFile(dir=folder) as words:
        with bar("reading words", count) as progress:
            stream = tokenizer.streaming_tokenize(passages.texts(), update_vocab=True, allow_empty=False)
            for ids in _shown(stream, progress):
                array("i", ids).tofile(words)
                lengths.append(len(ids))
        words.flush()
        if not sum(lengths):
            raise InputError("--corpus", "no passage has a word in it, or stop words alone")
        vocabulary = tokenizer.get_vocab_dict()
        index = bm25s.BM25(csc_backend="scipy")
        # bm25s goes over the passages three times: lengths, document frequencies, scores.
        with bar("scoring words", 3 * count) as progress:
            corpus = _Words(words, lengths, vocabulary, progress)
            index.index(corpus, create_empty_token=False, show_progress=False)
    index.save(folder / FOLDER, show_progress=False)
    tokenizer.save_vocab(folder / FOLDER)


def load(folder: Path, count: int) -> Callable[[Sequence[str], int], list[list[int]]]:
    """Return `search(questions, k)`: the numbers of each question's best passages, best first.

    There are fewer than k where fewer passages share a word with the question. The index stays on disk, mapped.

    Raises:
        ValueError: it is of another number of passages than `count`.

    """
    import bm25s

    index = bm25s.BM25.load(folder / FOLDER, mmap=True, load_vocab=False)
    if index.scores["num_docs"] != count:
        raise ValueError(f"{folder / FOLDER} is of {index.scores['num_docs']} passages, not {count}")
    tokenizer = _tokenizer()
    tokenizer.load_vocab(folder / FOLDER)

    def search(questions: Sequence[str], k: int) -> list[list[int]]:
        found = []
        for ids in tokenizer.streaming_tokenize(questions, update_vocab=False, allow_empty=False):
            found.append(_best(index.get_scores_from_ids(ids), k))
        return found

    return search


def _best(scores: Any, k: int) -> list[int]:
    """Return where the k largest scores are, largest first, earlier ones first among equals; none of 0.

    Most scores are small or 0. The k-th largest maximum of a stretch is at most the k-th largest score: what lies
    below needs no sorting. (0.3 ms for a million scores; `argpartition` takes 44.)
    """
    import numpy as np

    maxima = np.maximum.reduceat(scores, np.arange(0, len(scores), STRETCH))
    bound = np.partition(maxima, -k)[-k] if len(maxima) > k else 0
    places = np.flatnonzero(scores >= bound if bound > 0 else scores > 0)
    best: list[int] = places[np.lexsort((places, -scores[places]))][:k].tolist()
    return best


class _Words:
    """What bm25s takes for a corpus of numbered words (`ids`, `vocab`), read from a file each time over."""

    def __init__(self, file: Any, lengths: Sequence[int], vocab: dict[str, int], progress: Bar) -> None:
        import numpy as np

        self.ids, self.vocab, self.progress = self, vocab, progress
        self.words = np.memmap(file, dtype=np.int32, mode="r")
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[list[int]]:
        return _shown(self._read(), self.progress)

    def _read(self) -> Iterator[list[int]]:
        start = 0
        for length in self.lengths:
            yield self.words[start : start + length].tolist()
            start += length


def _shown(items: Iterator[list[int]], progress: Bar) -> Iterator[list[int]]:
    """Pass items on and show how many there have been."""
    waiting = 0
    for item in items:
        yield item
        waiting += 1
        if waiting == STEP:
            progress.advance(waiting, every=SHOWN_EVERY)
            waiting = 0
    if waiting:
        progress.advance(waiting, every=SHOWN_EVERY)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, in their order, without English stop words.

    A single letter or digit is a word ("Apollo 8", "vitamin C"), but for what follows an apostrophe ("Apollo's"), and
    so is a capital A within a sentence ("hepatitis A"). Where a script has no spaces between words, each two
    neighbouring characters are one, as in Lucene's CJKAnalyzer, and each Han character by itself.
    """
    from bm25s.stopwords import STOPWORDS_EN

    words, pattern = list[str](), _pattern(r"(A)\b(?<=[\w,] A)|(\w+)(?:['\u2019]\w\b)?")
    for capital, word in pattern.findall(unicodedata.normalize("NFKC", text)):
        if capital:
            words.append("a")
        elif word.isascii():
            words += [lower] if (lower := word.lower()) not in STOPWORDS_EN else []
        else:
            words += _unspaced(word.lower())
    return words


def _unspaced(word: str) -> list[str]:
    """Return the characters and pairs of them that a word is made of, and what is in scripts with spaces as it is."""
    words = list[str]()
    for run in _pattern(rf"(?:[{UNSPACED}]\p{{M}}*)+|[^{UNSPACED}]+").findall(word):
        units = _pattern(rf"[{UNSPACED}]\p{{M}}*").findall(run)
        words += [unit for unit in units if _pattern(r"\p{Han}").match(unit)] if len(units) != 1 else units
        words += map("".join, itertools.pairwise(units)) if units else [run]
    return words


@functools.cache
def _pattern(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)


def _tokenizer() -> Any:
    import Stemmer
    from bm25s.tokenization import Tokenizer

    return Tokenizer(lower=False, splitter=words_of, stopwords=None, stemmer=Stemmer.Stemmer("english"))
