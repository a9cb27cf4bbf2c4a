"""Attention of packed groups on CPUs as one call of compiled code (`csrc/packed_attention.cpp`), and one back.

It reads queries, keys and values where they are packed: no padding, no copy of a prompt for each of its completions.
Kept for the backward pass are those, the output, and the logarithm of each softmax's sum (arXiv:2205.14135).
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrpo.engine.cpu.build import Compiled
from hrpo.engine.kv import PADDING
from hrpo.engine.spans import Packing


class _Packed(ctypes.Structure):
    """`Packed` of the C++ code."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "logs")),
        *((name, ctypes.c_void_p) for name in ("grad", "to_query", "to_key", "to_value", "sequences")),
        *((name, ctypes.c_int64) for name in ("B", "G", "H", "heads", "d")),
        ("scale", ctypes.c_float),
    )


class PackedAttention(torch.autograd.Function):
    """Prompts attend to themselves; completions to their group's prompt and to themselves; causally.

    query: (S, H, d). key, value: (S, H_kv, d). sequences: (B * (1 + G), 4) int64, prompts and then completions: where
    each begins, its tokens, where its prompt begins, that one's tokens (0 and 0 for prompts). G: completions of a
    prompt. library: has the code, see `serves`. scale: of the scores. Returns (S, H, d).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sequences: Tensor, G: int, library: Compiled, scale: float
    ) -> Tensor:
        """Attend."""
        query, key, value = (x.contiguous() for x in (query, key, value))
        out, logs = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
        _call(library, "attend_packed", (query, key, value, out, logs), (), sequences, G, scale)
        ctx.save_for_backward(query, key, value, out, logs, sequences)
        ctx.G, ctx.library, ctx.scale = G, library, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the shares again, and from them all gradients."""
        *kept, sequences = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in kept[:3]]
        _call(ctx.library, "attend_packed_backward", kept, (grad.contiguous(), *grads), sequences, ctx.G, ctx.scale)
        return *grads, None, None, None, None


def attend_packed(
    library: Compiled, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float
) -> Tensor | None:
    """Return what `TrainingKernels.attend` does; None where the library does not serve such tensors."""
    if not serves(library, query, key, value):
        return None
    arguments = (query, key, value, packing.sequences, packing.group_size, library, scale)
    out: Tensor = PackedAttention.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


def serves(library: Compiled, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the code is for tensors like these; under autocast, for those of its type alone."""
    d = query.shape[2]
    if torch.is_autocast_enabled("cpu") and query.dtype != torch.get_autocast_dtype("cpu"):
        return False
    alike = query.dtype == key.dtype == value.dtype and key.shape == value.shape and key.shape[2] == d
    return alike and d % PADDING == 0 and library.find("attend_packed", query) is not None


def _call(
    library: Compiled,
    name: str,
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor],
    sequences: Tensor,
    G: int,
    scale: float,
) -> None:
    """Run it on query, key, value, output and logarithms, and the gradients of the output and of the first three."""
    query, key = tensors[:2]
    function: Any = library.find(name, query)
    places = [x.data_ptr() for x in (*tensors, *grads)] + [None] * (4 - len(grads))
    sizes = (len(sequences) // (1 + G), G, query.shape[1], *key.shape[1:])
    function(ctypes.byref(_Packed(*places, sequences.data_ptr(), *sizes, scale)), torch.get_num_threads())
