"""Any data set of reasoning-gym (arXiv:2505.24760) as a task: reasoning_gym/NAME.

A completion's answer, the text after the delimiter, is scored by the data set's own `score_answer`: in another process
(scorer.py), since several of these evaluate it.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.tasks.base import SYSTEM_PROMPT, Example, Task, make_preamble
from hrpo.tasks.judge import DELIMITER
from hrpo.tasks.scorer_process import Aside

PREFIX = "reasoning_gym/"
TRAIN, TEST = 10_000, 500
ANSWER_CHARS = 1_000_000  # of its end
TRIES = 20  # problems drawn for one that is not a test problem


def names() -> list[str]:
    """Return what the data sets are called, none where reasoning-gym is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return sorted(DATASETS)


def check_installed() -> None:
    """Refuse to go on without reasoning-gym."""
    if not names():
        raise InputError("task.name", "reasoning-gym is not installed: pip install 'hrpo[reasoning-gym]'")


def check(config: TaskConfig, *, test_only: bool = False) -> None:
    """Refuse an unknown data set, or any where reasoning-gym is not installed."""
    check_installed()
    name = config.name.removeprefix(PREFIX)
    if name not in names():
        raise InputError(
            "task.name", f"reasoning-gym has no data set {name!r}", "`hrpo tasks reasoning_gym` lists them"
        )
    for field in ("path", "test_path"):
        if getattr(config, field):
            raise InputError(f"task.{field}", f"the problems of {config.name} are generated", f"leave {field} out")
    if config.num_fewshot:
        raise InputError("task.num_fewshot", f"the problems of {config.name} have no worked solutions")


def load(config: TaskConfig, seed: int, *, test_only: bool = False) -> Task:
    """Return the task: 500 test problems, the same for every seed, and 10,000 training problems drawn on demand.

    Problem i of a data set is drawn from its seed + i; the ranges of training and test seeds are disjoint, and a
    training problem that occurs among the test problems is drawn anew.

    Raises:
        InputError: the data set cannot be made.

    """
    name = config.name.removeprefix(PREFIX)
    tests = make(name, seed=0, size=TEST)
    test = [_example(tests[index]) for index in range(TEST)]
    first = 1_000_000 * (1 + seed % 4000)  # some data sets take seeds below 2^32 only
    seen = frozenset(example.question for example in test)
    train = [] if test_only else Problems(make(name, seed=first, size=2 * TRAIN), seen)  # as many again to draw anew

    def metric(completions: list[str], *, entry: list[Any], **columns: Any) -> list[float]:
        answers = (text.rpartition(DELIMITER)[2].strip() for text in completions)
        return [_score(name, answer, row) for answer, row in zip(answers, entry, strict=True)]

    def reward(completions: list[str], *, entry: list[Any], **columns: Any) -> list[float]:
        scores = metric(completions, entry=entry)
        return [score * (text.count(DELIMITER) == 1) for score, text in zip(scores, completions, strict=True)]

    return Task(config.name, None, train, test, make_preamble(SYSTEM_PROMPT, []), reward, metric)


@dataclass(frozen=True)
class Problems(Sequence[Example]):
    """Training problems, drawn when they are asked for."""

    dataset: Any
    seen: frozenset[str]

    def __len__(self) -> int:
        return TRAIN

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(TRAIN))]
        if not -TRAIN <= index < TRAIN:
            raise IndexError(index)
        index %= TRAIN
        for place in (index, *(TRAIN + (index + attempt) % TRAIN for attempt in range(TRIES))):
            example = _example(self.dataset[place])
            if example.question not in self.seen:
                return example
        raise InputError("task.name", f"this data set has too few problems: {TRIES} in a row are test problems")


def make(name: str, seed: int, size: int) -> Any:
    """Return a data set of reasoning-gym."""
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size)
    except (AssertionError, TypeError, ValueError, ImportError, OSError) as error:
        raise InputError("task.name", f"reasoning-gym cannot make {name}: {error}") from error


def _score(name: str, answer: str, entry: dict[str, Any]) -> float:
    """Return what a data set's scorer gives an answer; 0 where it cannot read it, or takes too long over it."""
    question = json.dumps([answer[-ANSWER_CHARS:], as_literal(entry)])
    return float(json.loads(_scorer(name).ask(question) or "0"))


def as_literal(entry: Any) -> str:
    """Return a problem as Python's literal_eval reads it back; JSON would lose tuples and keys that are numbers."""
    return repr(_plain(entry))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_plain, value))
    return value.item() if hasattr(value, "item") else value  # numpy's scalars; the scorer imports numpy later


@functools.cache
def _scorer(name: str) -> Aside:
    return Aside(f"from hrpo.tasks.reasoning_gym_scorer import serve; serve({name!r})")


def _example(entry: dict[str, Any]) -> Example:
    return Example(entry["question"], str(entry["answer"] or ""), columns={"entry": entry})
