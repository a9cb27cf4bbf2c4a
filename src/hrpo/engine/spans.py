"""Sequences of different lengths end to end, as attention without padding wants them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """Which keys each sequence's queries see: the last all of them, the one before it all but the last, and so on.

    key_places: (K,), the place of each key in the row of tokens.
    query_ends, key_ends: (sequences + 1,) int32, sums of lengths, from 0.
    longest_query, longest_key: tokens.
    """

    key_places: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


class Packing(Protocol):
    """The order of a batch of groups in one row of tokens, see `PackedGroups`."""

    group_size: int
    sequences: Tensor

    @property
    def spans(self) -> Spans:
        """The same as sequences of their own, each completion's keys after those of its prompt."""
        ...
