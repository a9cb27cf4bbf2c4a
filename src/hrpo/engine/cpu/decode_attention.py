"""A decode step's attention on CPUs as one call of compiled code (`csrc/decode_attention.cpp`).

Without it, `SharedDecoder` does the same with PyTorch's operations, four small matrix products and a softmax for each
layer, which take two to three times as long.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrpo.engine.cpu.build import Compiled

LANES = 16  # of a vector in the compiled code, which may read so many elements past a tensor's end
ROWS = 8  # of one prompt, computed together by a thread


class Step(ctypes.Structure):
    """`Step` of the C++ code: attention in one layer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "prompt_keys", "prompt_values")),
        *((name, ctypes.c_void_p) for name in ("own_keys", "own_values", "out", "parts", "members", "ages")),
        *((name, ctypes.c_int64) for name in ("n_parts", "H", "heads", "d", "d_v", "P_room", "T_room")),
        *((name, ctypes.c_int64) for name in ("next_query", "next_key", "next_value")),
        ("scale", ctypes.c_float),
    )


class Seats:
    """Rows that share a prompt, in parts that a thread computes together.

    Args:
        groups: the rows of each slot.
        lengths: tokens of each slot's prompt.

    """

    def __init__(self, groups: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        parts: list[list[int]] = []
        members: list[int] = []
        for slot, (rows, length) in enumerate(zip(groups, lengths, strict=True)):
            for first in range(0, len(rows), ROWS):
                part = rows[first : first + ROWS]
                parts.append([len(members), len(members) + len(part), slot, length])
                members += part
        self.parts = torch.tensor(parts)  # first member, last (exclusive), slot, prompt tokens
        self.members = torch.tensor(members)


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Return zeros of a tensor's type, with room behind them for what compiled code reads and leaves out."""
    size = torch.Size(shape).numel()
    return like.new_zeros(size + LANES)[:size].view(shape)


@dataclass(frozen=True)
class Seating:
    """What queries of one layer attend to in a decode step, and where keys and values go.

    Args:
        shared: keys (slots, H_kv, d, P) and values (slots, H_kv, P, d_v) of prompts, contiguous, from `zeros`.
        own: the same of completions, (rows, H_kv, d, capacity) and (rows, H_kv, capacity, d_v).
        seats: who shares which prompt.
        ages: (n,) int64, where a row's key and value belong.

    """

    shared: tuple[Tensor, Tensor]
    own: tuple[Tensor, Tensor]
    seats: Seats
    ages: Tensor

    def step(self, H: int, scale: float) -> Step:
        """Return the step for H heads, without its query, key, value and out."""
        keys, values = self.own
        heads, d, T_room = keys.shape[1:]
        places = [x.data_ptr() for x in (*self.shared, *self.own)]
        who = [x.data_ptr() for x in (self.seats.parts, self.seats.members, self.ages)]
        sizes = (len(self.seats.parts), H, heads, d, values.shape[3], self.shared[0].shape[3], T_room)
        return Step(None, None, None, *places, None, *who, *sizes, 0, 0, 0, scale)


def attend_compiled(
    library: Compiled, query: Tensor, key: Tensor, value: Tensor, seating: Seating, scale: float
) -> Tensor | None:
    """Write each row's key and value where they belong, and attend: return (n, H, d_v).

    Where tensors of these types are not served nothing is written, and None returned.

    Args:
        library: has the code.
        query: (n, H, d).
        key: (n, H_kv, d).
        value: (n, H_kv, d_v).
        seating: where they belong.
        scale: of the scores.

    """
    function = library.find("attend", query)
    if not function or not query.dtype == key.dtype == value.dtype == seating.own[0].dtype:
        return None
    n, H = query.shape[:2]
    query, key, value = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (query, key, value))
    out = query.new_empty(n, H, value.shape[2])
    step = seating.step(H, scale)
    step.query, step.key, step.value, step.out = (x.data_ptr() for x in (query, key, value, out))
    step.next_query, step.next_key, step.next_value = (x.stride(0) for x in (query, key, value))
    function(ctypes.byref(step), torch.get_num_threads())
    return out
