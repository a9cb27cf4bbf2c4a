"""Completions to rewards. A reward is a function in TRL's signature: f(completions, **columns) -> list of floats."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrpo.common.errors import InputError
from hrpo.tasks import Example, Task, judge
from hrpo.tasks.base import RewardContext, RewardFunction, arguments, spoken
from hrpo.tasks.custom import LARGEST
from hrpo.tasks.judge import DELIMITER


def correctness(completions: Sequence[str], *, gold: Sequence[Any], kind: Any, **columns: Any) -> list[float]:
    """Return 1 where the answer after the delimiter is right and the delimiter appears exactly once, else 0."""
    return [float(judge(kind, text, answer).strict) for text, answer in zip(completions, gold, strict=True)]


def one_delimiter(completions: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 where the delimiter appears exactly once, else 0."""
    return [float(text.count(DELIMITER) == 1) for text in completions]


def score(
    task: Task, examples: Sequence[Example], completions: Sequence[str], context: RewardContext | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the reward of each completion, the weighted sum of the task's rewards, (N,); and the mean of each.

    A reward that has nothing to say of a completion, None in TRL's signature, is left out of its sum and of the mean;
    where none has anything to say the sum is NaN. One that has nothing to say of any has no mean.

    Args:
        task: how answers are judged, and which rewards count how much.
        examples: the problem of each completion, N of them.
        completions: N texts.
        context: what else reward functions get to know.

    """
    return combine(task, values_of(task, examples, completions, context))


def values_of(
    task: Task, examples: Sequence[Example], completions: Sequence[str], context: RewardContext | None = None
) -> Tensor:
    """Return what each of the task's rewards gives each completion, float64 (N, rewards); see `score`."""
    ours: dict[str, RewardFunction] = {
        "correct": functools.partial(correctness, kind=task.kind),
        "format": one_delimiter,
    }
    theirs = {**({"correct": task.reward} if task.reward else {}), **task.functions}

    def values(name: str) -> list[float]:
        columns = arguments(examples, context)
        if name in theirs:
            return theirs[name](spoken(completions, examples), **columns)
        return ours[name](completions, **columns)

    return torch.tensor([values(name) for name in task.weights], dtype=torch.float64).T


def combine(task: Task, values: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return rewards and means, see `score`, of what each of the task's rewards gives: (N, rewards).

    Raises:
        InputError: a sum is larger than float32 can hold.

    """
    weights = torch.tensor(list(task.weights.values()), dtype=values.dtype)
    total = (values * weights).nansum(dim=1).where(~values.isnan().all(dim=1), math.nan)  # (N,)
    if (total.abs() > LARGEST).any():
        raise InputError("task.rewards", f"a weighted sum is beyond {LARGEST:.2g}", "give smaller rewards or weights")
    means = zip(task.weights, values.nanmean(dim=0).tolist(), strict=True)
    return total, {name: mean for name, mean in means if not math.isnan(mean)}


def or_none(rewards: Tensor) -> list[float | None]:
    """Return rewards as JSON has them: None for one that is missing."""
    return [None if math.isnan(reward) else reward for reward in rewards.tolist()]
