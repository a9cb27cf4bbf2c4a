"""Where keys and values of a decoding batch stand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = 16  # elements behind a tensor of keys or values that kernels may read, and leave out


class PromptGroups:
    """The rows of a batch that share a prompt.

    Args:
        rows: of each prompt's slot, numbers of the batch's rows.
        lengths: tokens of each slot's prompt.

    """

    def __init__(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        self.rows, self.lengths = rows, lengths


@dataclass(frozen=True)
class KVLayout:
    """What queries of one layer attend to in a decode step, and where keys and values go.

    Args:
        prompts: keys (slots, H_kv, d, P) and values (slots, H_kv, P, d_v) of prompts, contiguous, from `zeros`.
        completions: the same of completions, (rows, H_kv, d, capacity) and (rows, H_kv, capacity, d_v).
        groups: which rows share which prompt.
        ages: (n,) int64, where a row's key and value belong.

    """

    prompts: tuple[Tensor, Tensor]
    completions: tuple[Tensor, Tensor]
    groups: PromptGroups
    ages: Tensor


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Return zeros of a tensor's type, with `PADDING` behind them."""
    size = torch.Size(shape).numel()
    return like.new_zeros(size + PADDING)[:size].view(shape)
