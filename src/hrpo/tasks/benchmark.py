"""Published benchmarks: rows from a file as its publisher has it, or from the Hub, and a task made of them.

Reading imports neither torch nor, for files, the `datasets` library.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError, of_field
from hrpo.config.schema import TaskConfig
from hrpo.tasks.base import Example, Kind, Spec, Task, prepare
from hrpo.tasks.row_files import Rows, read

# The last three come of Python lists in cells, and of lists in lists in lists.
PARSING_ERRORS = (KeyError, TypeError, ValueError, IndexError, AttributeError, SyntaxError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Split:
    """Where the rows of a split are.

    Args:
        hub: repository, config and split on the Hub.
        folder: in which these files lie in a folder of several benchmarks.
        files: what the files are called, the first that is there counts; "a|b" is two files that belong together, and
            a pattern stands for all that it matches.
        rows: how many, as published.
        keep: which rows of the Hub's belong to it.

    """

    hub: tuple[str, str, str]
    folder: str
    files: tuple[str, ...]
    rows: int
    keep: Callable[[Any], bool] = lambda row: True


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark, or a mix of several.

    Args:
        name: of the task.
        kind: how answers are judged.
        parse: makes a problem of a row, None of one without an answer; what it raises at anything else is put
            into words.
        train: its training splits; none where it is for tests only.
        test: its test splits, taken in turns.
        source: whose it is.
        licence: of the data.
        held_out: splits of other tests, kept out of the training rows.

    """

    name: str
    kind: Kind
    parse: Callable[[Any], Example | None]
    train: tuple[Split, ...]
    test: tuple[Split, ...]
    source: str
    licence: str
    held_out: tuple[Split, ...] = ()

    def spec(self) -> Spec:
        """Return what `hrpo tasks` says of it, and how to get it."""
        return Spec(
            self.kind,
            sum(split.rows for split in self.train),
            sum(split.rows for split in self.test),
            self.source,
            self.licence,
            functools.partial(load, self),
            functools.partial(check, self),
            functools.partial(at_hand, self),
        )


def load(benchmark: Benchmark, config: TaskConfig, seed: int, *, test_only: bool = False) -> Task:
    """Return the task.

    Training rows come from `task.path`, a file or a folder, test rows from `task.test_path`, or else from where the
    training file is. With neither both come from the Hub; with a test file alone there is nothing to train on.

    Raises:
        InputError: a file is missing or has other rows, or the Hub cannot be reached.

    """
    path, test_path = Path(config.path), Path(config.test_path)
    beside = path if path.is_dir() else path.parent
    with of_field("task.test_path" if config.test_path else "task.path"):
        if config.test_path:
            tests = [read(test_path)] if test_path.is_file() else _found(benchmark, "test", test_path)
        elif config.path:
            tests = _found(benchmark, "test", beside)
        else:
            tests = [from_hub(split) for split in benchmark.test]
        test, test_unanswered = _in_turns(benchmark, tests)
    trains: list[Rows] = []
    held_out: list[Rows] = []
    with of_field("task.path"):
        if not test_only and config.path:
            trains = [read(path)] if path.is_file() else _found(benchmark, "train", path)
            # the usual tests are held out even where another one is named
            splits = (*benchmark.test, *benchmark.held_out)
            held_out = [_read_all(files) for split in splits if (files := find(split, beside))]
        elif not test_only and not config.test_path:
            trains, held_out = (
                [from_hub(split) for split in splits] for splits in (benchmark.train, benchmark.held_out)
            )
        train, unanswered = parsed(benchmark, chain.from_iterable(trains))
        others, _ = parsed(benchmark, chain.from_iterable(held_out))
    return prepare(
        config,
        seed,
        benchmark.kind,
        train,
        test,
        held_out=others,
        dropped={
            "training problems without an answer": unanswered,
            "test problems without an answer": test_unanswered,
        },
    )


def examples_of(benchmark: Benchmark, which: str, path: str) -> tuple[list[Example], int]:
    """Return the problems of a split alone, and how many had no answer.

    Args:
        benchmark: whose.
        which: "train" or "test".
        path: a file of problems, or a folder with the split's file; "" is the Hub.

    Raises:
        InputError: a file is missing or has other rows, or the Hub cannot be reached.

    """
    if not path:
        sources = [from_hub(split) for split in getattr(benchmark, which)]
    else:
        sources = [read(Path(path))] if Path(path).is_file() else _found(benchmark, which, Path(path))
    return _in_turns(benchmark, sources)


def _in_turns(benchmark: Benchmark, sources: Sequence[Rows]) -> tuple[list[Example], int]:
    """Return the problems of several sources, taken in turns, and how many had no answer."""
    parts = [parsed(benchmark, rows) for rows in sources]
    examples = [row for rows in zip_longest(*(examples for examples, _ in parts)) for row in rows if row]
    return examples, sum(count for _, count in parts)


def check(benchmark: Benchmark, config: TaskConfig, *, test_only: bool = False) -> None:
    """Refuse paths that do not lead to the files needed, without reading one.

    Raises:
        InputError: names the field and what was looked for.

    """
    for field in ("path", "test_path"):
        value = getattr(config, field)
        if value and not Path(value).exists():
            raise InputError(f"task.{field}", f"no file {value}", "give a file, or a folder with one")
    if Path(config.path).is_file() and not benchmark.train:
        raise InputError("task.path", f"{benchmark.name} is for tests only", "give its file as task.test_path")
    test_path = Path(config.test_path)
    if config.test_path and test_path.is_dir():
        _found(benchmark, "test", test_path)
    if config.path:
        path = Path(config.path)
        if not config.test_path:
            _found(benchmark, "test", path if path.is_dir() else path.parent)
        if path.is_dir() and not test_only:
            _found(benchmark, "train", path)
            _found(benchmark, "held_out", path)


def at_hand(benchmark: Benchmark, folder: str) -> str:
    """Return in words where the rows are: in a folder, in the Hub's cache, or on the Hub."""
    if folder:
        parts = [name for name in ("train", "test") if getattr(benchmark, name)]
        there = [name for name in parts if all(find(split, Path(folder)) for split in getattr(benchmark, name))]
        return " and ".join(there) or "no"
    from huggingface_hub.constants import HF_HUB_CACHE

    repositories = {split.hub[0] for split in (*benchmark.train, *benchmark.test)}
    cached = (Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" for name in repositories)
    return "cached" if all(folder.is_dir() for folder in cached) else "on the Hub"


def find(split: Split, folder: Path) -> list[Path]:
    """Return the files of a split in a folder, or in the folder of its name in there; none where there are none."""
    for place in (folder, folder / split.folder):
        for names in split.files:
            found = [sorted(filter(Path.is_file, place.glob(name))) for name in names.split("|")]
            if all(found):
                return [path for paths in found for path in paths]
    return []


def from_hub(split: Split) -> Rows:
    """Yield the rows of a split on the Hub; they are downloaded once.

    Raises:
        InputError: the `datasets` library is missing, or there is no network.

    """
    repository, config, part = split.hub
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "task.path",
            f"give a file, or install what reads {repository} from the Hub: pip install 'hrpo[data]'",
        ) from error
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # retries are not news
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(repository, config, split=part)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            "task.path", f"give a file, since {repository} does not come from the Hub: {reason}"
        ) from error
    for number, row in enumerate(rows, 1):
        if split.keep(row):
            yield f"{repository}, {config}, {part}, row {number}", row


def _found(benchmark: Benchmark, which: str, folder: Path) -> list[Rows]:
    """Return the rows, not read yet, of a benchmark's training, test or held-out splits in a folder."""
    rows = []
    for split in getattr(benchmark, which):
        files = find(split, folder)
        if not files:
            part, field = ("training", "path") if which == "train" else ("test", "test_path")
            looked = " or ".join(name.partition("|")[0] for name in split.files)
            raise InputError(
                f"task.{field}", f"give the {part} file of {benchmark.name}", f"no file {looked} in {folder}"
            )
        rows.append(_read_all(files))
    return rows


def _read_all(files: list[Path]) -> Rows:
    return chain.from_iterable(map(read, files))


def parsed(benchmark: Benchmark, rows: Rows) -> tuple[list[Example], int]:
    """Return the problems in rows, and how many had no answer."""
    found: list[Example | None] = []
    for where, row in rows:
        try:
            found.append(benchmark.parse(row))
        except PARSING_ERRORS as error:
            reason = f"no row of {benchmark.name} ({type(error).__name__}: {error})"
            raise InputError(where, reason, "docs/benchmarks.md lists the forms") from error
    examples = [example for example in found if example is not None]
    return examples, len(found) - len(examples)
