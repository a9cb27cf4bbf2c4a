"""Completions to rewards. A reward is a function in TRL's signature: f(completions, **columns) -> list of floats."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrpo.tasks import Example, Task, judge


def correctness(completions: Sequence[str], *, gold: Sequence[Any], kind: str, **columns: Any) -> list[float]:
    """Return 1 where the answer after the delimiter is right and the delimiter appears exactly once, else 0."""
    return [float(judge(kind, text, answer).strict) for text, answer in zip(completions, gold, strict=True)]


def score(task: Task, examples: Sequence[Example], completions: Sequence[str]) -> Tensor:
    """Return the reward of each completion, (N,).

    Args:
        task: says how answers are judged.
        examples: the problem of each completion, N of them.
        completions: N texts.

    """
    gold = [example.gold for example in examples]
    return torch.tensor(correctness(completions, gold=gold, kind=task.kind))
