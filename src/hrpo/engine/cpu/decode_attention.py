"""A decode step's attention on CPUs as one call of compiled code (`csrc/decode_attention.cpp`).

Without it, `SharedDecoder` does the same with PyTorch's operations, four small matrix products and a softmax for each
layer, which take two to three times as long.
"""

import ctypes
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hrpo.engine.cpu.build import Compiled
from hrpo.engine.kv import KVLayout, PromptGroups

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


@dataclass(frozen=True)
class Parts:
    """Rows that share a prompt, in parts that a thread computes together: see `Step`."""

    parts: Tensor  # first member, last (exclusive), slot, prompt tokens
    members: Tensor

    @classmethod
    def of(cls, groups: PromptGroups) -> "Parts":
        """Return the parts of a batch's rows."""
        parts: list[list[int]] = []
        members: list[int] = []
        for slot, (rows, length) in enumerate(zip(groups.rows, groups.lengths, strict=True)):
            for first in range(0, len(rows), ROWS):
                part = rows[first : first + ROWS]
                parts.append([len(members), len(members) + len(part), slot, length])
                members += part
        return cls(torch.tensor(parts), torch.tensor(members))


_parts: WeakKeyDictionary[PromptGroups, Parts] = WeakKeyDictionary()


def step_of(kv: KVLayout, H: int, scale: float) -> Step:
    """Return the step for H heads, without its query, key, value and out."""
    if kv.groups not in _parts:
        _parts[kv.groups] = Parts.of(kv.groups)
    who = _parts[kv.groups]
    keys, values = kv.completions
    heads, d, T_room = keys.shape[1:]
    places = [x.data_ptr() for x in (*kv.prompts, *kv.completions)]
    rows = [x.data_ptr() for x in (who.parts, who.members, kv.ages)]
    sizes = (len(who.parts), H, heads, d, values.shape[3], kv.prompts[0].shape[3], T_room)
    return Step(None, None, None, *places, None, *rows, *sizes, 0, 0, 0, scale)


def attend_compiled(
    library: Compiled, query: Tensor, key: Tensor, value: Tensor, kv: KVLayout, scale: float
) -> Tensor | None:
    """Write each row's key and value where they belong, and attend: return (n, H, d_v).

    Where tensors of these types are not served nothing is written, and None returned.

    Args:
        library: has the code.
        query: (n, H, d).
        key: (n, H_kv, d).
        value: (n, H_kv, d_v).
        kv: where they belong.
        scale: of the scores.

    """
    function = library.find("attend", query)
    if not function or not query.dtype == key.dtype == value.dtype == kv.completions[0].dtype:
        return None
    n, H = query.shape[:2]
    query, key, value = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (query, key, value))
    out = query.new_empty(n, H, value.shape[2])
    step = step_of(kv, H, scale)
    step.query, step.key, step.value, step.out = (x.data_ptr() for x in (query, key, value, out))
    step.next_query, step.next_key, step.next_value = (x.stride(0) for x in (query, key, value))
    function(ctypes.byref(step), torch.get_num_threads())
    return out
