"""Attention on CUDA: FlashAttention over sequences end to end, and scores in float32 without a copy of the keys."""

import functools
import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.engine.spans import Packing

HALF = (torch.float16, torch.bfloat16)
WIDEST = 256  # of a head that FlashAttention serves
log = logging.getLogger("hrpo")


def attend_packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor | None:
    """Return what `TrainingKernels.attend` does, by FlashAttention (arXiv:2307.08691); None where it does not serve.

    Memory grows with the tokens, and no padding is computed. PyTorch's other kernels keep all scores where there are a
    mask and grouped heads, or work out a plan for each new shape.
    """
    d = query.shape[2]
    attend = _varlen_attn()
    if attend is None or query.dtype not in HALF or key.shape[2] != value.shape[2] or d % 8 or d > WIDEST:
        return None
    spans = packing.spans
    keys, values = (x.index_select(0, spans.key_places) for x in (key, value))  # (K, H_kv, d)
    out: Tensor = attend(
        query.contiguous(),
        keys,
        values,
        spans.query_ends,
        spans.key_ends,
        spans.longest_query,
        spans.longest_key,
        scale=scale,
    )
    return out


@functools.cache
def _varlen_attn() -> Any:
    """Return PyTorch's causal attention over sequences end to end, with grouped heads; None where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        log.warning("this PyTorch has no varlen_attn: attention of updates is padded; PyTorch 2.11 or newer has it")
        return None
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    return functools.partial(varlen_attn, **options)


def sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """See `hrpo.engine.interface.sdpa`.

    Grouped heads are repeated where the kernels that keep no scores do not take them: with a mask, and in float32.
    """
    grouped = mask is None and query.dtype in HALF
    if not grouped:
        per = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(per, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def scores(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor | None:
    """Return scores in float32 of bfloat16 queries and keys, see `DecodingKernels.scores`; None where it does not."""
    if query.dtype not in HALF or query.dtype != keys.dtype or not hasattr(torch.ops.aten.baddbmm, "dtype"):
        return None
    if bias is None:
        return torch.ops.aten.bmm.dtype(query, keys, torch.float32) * scale  # type: ignore[no-any-return]
    bias = bias.expand(len(query), query.shape[1], keys.shape[2])
    return torch.ops.aten.baddbmm.dtype(bias, query, keys, torch.float32, alpha=scale)  # type: ignore[no-any-return]
