"""Find passages for a task's questions, once, and write both to a file that training and evaluation read."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

from hrpo.common.console import bar
from hrpo.common.errors import InputError, named_by
from hrpo.common.files import new_file
from hrpo.config.bounds import OPTIONS, outside_of
from hrpo.retrieval.index import Index
from hrpo.retrieval.recall import ANSWER, DEPTHS, PARAGRAPH, TITLE, marked, ranks, recall
from hrpo.tasks import BENCHMARKS
from hrpo.tasks.base import Example
from hrpo.tasks.benchmark import examples_of
from hrpo.tasks.knowledge import qa_row

BATCH = 1024  # questions searched for at a time: each time, all vectors are read once
SHOWN_EVERY = 10.0


def add_passages(
    task: str, index: str, out: str, *, k: int = 3, split: str = "test", path: str = ""
) -> tuple[int, list[list[str]]]:
    """Write each question of a split with its k best passages, JSONL `question`, `answer`, `passages`.

    Args:
        task: a benchmark whose answers are judged as "qa".
        index: the folder of an index.
        out: the file; it is there whole or not at all.
        k: passages a question.
        split: "train" or "test".
        path: a file of the questions, or a folder with the split's file; "" is the Hub.

    Returns:
        How many questions there are, and a table of recall: measure, questions, a share for each depth of `depths(k)`.

    Raises:
        InputError: something cannot be used; names the option.

    """
    if wrong := outside_of(OPTIONS, {"k": k}):
        raise wrong[0].renamed({"k": "-k"})
    examples = _questions(task, split, path)
    if path and Path(out).resolve() == Path(path).resolve():
        raise InputError("--out", f"{out} is the file of questions, which would be lost", "name a new file")
    searched = Index(index)
    found: dict[str, list[list[float]]] = {ANSWER: [], PARAGRAPH: [], TITLE: []}
    left = iter(examples)
    with new_file(Path(out)) as file, bar("searching", len(examples)) as progress:
        while batch := list(islice(left, BATCH)):
            questions = [example.columns["stem"] for example in batch]
            for example, passages in zip(batch, searched.search(questions, k), strict=True):
                shown = [{"title": passage["title"], "text": passage["text"]} for passage in passages]
                row = {"question": example.columns["stem"], "answer": example.gold, "passages": shown}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                for measure, places in ranks(list(example.gold), example.columns["marked"], passages).items():
                    found[measure].append(places)
            progress.advance(len(batch), every=SHOWN_EVERY)
    table = [
        [measure, f"{len(places):,}", *(f"{recall(places, depth):.1%}" for depth in depths(k))]
        for measure, places in found.items()
        if places
    ]
    return len(examples), table


def depths(k: int) -> list[int]:
    """Return the depths at which recall is reported."""
    return [*(depth for depth in DEPTHS if depth < k), k]


def _questions(task: str, split: str, path: str) -> list[Example]:
    kinds = [name for name, benchmark in BENCHMARKS.items() if benchmark.kind == "qa"]
    if task not in kinds:
        raise InputError("--task", f"passages are for {', '.join(kinds)}, not {task!r}")
    if path and not Path(path).exists():
        raise InputError("--path", f"no file {path}")
    benchmark = dataclasses.replace(BENCHMARKS[task], parse=_parse)
    if not getattr(benchmark, split):
        raise InputError("--split", f"{task} is for tests only")
    with named_by({"task.path": "--path", "task.test_path": "--path"}):
        return examples_of(benchmark, split, path)[0]


def _parse(row: Any) -> Example | None:
    example = qa_row(row)
    if example is None:
        return None
    return dataclasses.replace(example, columns={**example.columns, "marked": marked(row)})
