"""Completions to rewards. A reward is a function in TRL's signature: f(completions, **columns) -> list of floats."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrpo.tasks import Example, Task, judge
from hrpo.tasks.judge import DELIMITER
from hrpo.tasks.task import columns_of


def correctness(completions: Sequence[str], *, gold: Sequence[Any], kind: Any, **columns: Any) -> list[float]:
    """Return 1 where the answer after the delimiter is right and the delimiter appears exactly once, else 0."""
    return [float(judge(kind, text, answer).strict) for text, answer in zip(completions, gold, strict=True)]


def one_delimiter(completions: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 where the delimiter appears exactly once, else 0."""
    return [float(text.count(DELIMITER) == 1) for text in completions]


def score(task: Task, examples: Sequence[Example], completions: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
    """Return the reward of each completion, the weighted sum of the task's rewards, (N,); and the mean of each.

    Args:
        task: how answers are judged, and which rewards count how much.
        examples: the problem of each completion, N of them.
        completions: N texts.

    """
    columns = columns_of(examples)
    own = task.reward or functools.partial(correctness, kind=task.kind)
    functions = {"correct": own, "format": one_delimiter, **task.functions}
    total, means = torch.zeros(len(examples)), {}
    for name, weight in task.weights.items():
        values = torch.tensor(functions[name](list(completions), **columns))  # (N,)
        total = total + weight * values
        means[name] = values.mean().item()
    return total, means
