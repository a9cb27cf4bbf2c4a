"""Float64 all through: what transformers computes in float32, or not at all, in a model of float64."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "hrpo_float64"


def stay_in_float64(lm: Any) -> None:
    """Let a transformers model of float64 compute in float64 where it would not.

    Attention with soft-capped scores takes its softmax in float32, in which the float64 number that stands for a masked
    score is minus infinity: rows of padding, which see nothing, become NaN. Grouped matrix products of experts know no
    float64.
    """
    if getattr(lm.config, "attn_logit_softcapping", None) and lm.config._attn_implementation == "eager":
        lm.set_attn_implementation(NAME)
    lm.set_experts_implementation("eager")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """(n, H, S, d), (n, H_kv, t, d), (n, H_kv, t, d), (n, 1, S, t) bools -> (n, S, H, d)."""
    per = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(per, dim=1).transpose(2, 3) * scaling  # (n, H, S, t)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min).softmax(dim=3)
    return (weights @ value.repeat_interleave(per, dim=1)).transpose(1, 2), None


def _mask(*sizes: Any, **options: Any) -> Tensor | None:
    return sdpa_mask(*sizes, **{**options, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
