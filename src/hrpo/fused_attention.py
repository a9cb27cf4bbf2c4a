"""Fused attention of packed groups on CPUs, which keeps what is packed for its backward pass, and no copies of it.

The operation reads padded sequences, and a prompt's keys and values before those of each of its completions. Autograd
would keep all of that; here it is made again.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hrpo.packing import PackedGroups

attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class FusedAttention(torch.autograd.Function):
    """Prompts attend to themselves; completions to their group's prompt and to themselves.

    query: (S, H, d). key, value: (S, H_kv, d). groups: how they are packed. scale: of the scores. Returns (S, H, d).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: "PackedGroups", scale: float) -> Tensor:
        """Attend to each part of `PackedGroups.operands`."""
        parts = groups.operands(query, key, value)
        results = [attend(*part, 0.0, bias is None, attn_mask=bias, scale=scale) for *part, bias in parts]
        outs, logs = zip(*results, strict=True)
        out = groups.pack(outs)
        ctx.save_for_backward(query, key, value, out, *logs)
        ctx.groups, ctx.scale = groups, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Take each part's gradients; a prompt's keys and values have some from each of its completions."""
        query, key, value, out, *logs = ctx.saved_tensors
        groups: PackedGroups = ctx.groups
        parts = groups.operands(query, key, value)
        # With no gradient in the padding there is none from there, whatever is in it.
        grads = [
            attend_backward(given, *part, made, log, 0.0, bias is None, attn_mask=bias, scale=ctx.scale)
            for given, (*part, bias), made, log in zip(groups.pad(grad), parts, groups.pad(out), logs, strict=True)
        ]
        to_query, to_keys, to_values = zip(*grads, strict=True)
        return groups.pack(to_query), groups.pack_shared(to_keys), groups.pack_shared(to_values), None, None
