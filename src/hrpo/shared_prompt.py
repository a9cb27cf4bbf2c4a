"""Attention to a prompt that completions share and to their own tokens, without a copy of it for each, on CPUs.

Short prompts in bfloat16 have all scores computed (`attend_in_products`); long ones have not (`SharedPromptAttention`):
a softmax over two sets of keys is the sum of the softmaxes over each, weighted by their shares of the normaliser. And
the gradients of flash attention (arXiv:2205.14135) need the output and the normaliser alone: given those of both sets
together, each set's backward pass gives its part of the gradients.
"""

from typing import Any

import torch
from torch import Tensor

from hrpo.fused_attention import attend, attend_backward


class SharedPromptAttention(torch.autograd.Function):
    """N = B * G completions attend to their group's prompt and, causally, to themselves.

    query: (N, H, S, d). prompt_key, prompt_value: (B, H_kv, P, d). key, value: (N, H_kv, S, d).
    bias: (B, 1, 1, P), 0 on the prompts and -inf on their padding.
    scale: of the scores. G: completions of a prompt. Returns (N, H, S, d).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        scale: float,
        G: int,
    ) -> Tensor:
        """Attend to both sets, and weight the outputs with their normalisers."""
        S = query.shape[2]
        bias = bias.expand(-1, -1, G * S, -1)
        shared = attend(_together(query, G), prompt_key, prompt_value, 0.0, False, attn_mask=bias, scale=scale)
        shared_out, shared_log = (_apart(x, G) for x in shared)
        own_out, own_log = attend(query, key, value, 0.0, True, scale=scale)
        log = torch.logaddexp(shared_log, own_log)  # (N, H, S), of the sum of exponentials
        shared_out = shared_out * torch.exp(shared_log - log).unsqueeze(3)
        out: Tensor = (shared_out + own_out * torch.exp(own_log - log).unsqueeze(3)).to(query.dtype)
        ctx.save_for_backward(query, prompt_key, prompt_value, key, value, bias, out, log)
        ctx.scale, ctx.G = scale, G
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Take each set's part of the gradients."""
        query, prompt_key, prompt_value, key, value, bias, out, log = ctx.saved_tensors
        G, scale, grad = ctx.G, ctx.scale, grad.contiguous()
        wide = [_together(x, G) for x in (grad, query, out, log)]
        to_query, *to_prompt = attend_backward(
            wide[0], wide[1], prompt_key, prompt_value, wide[2], wide[3], 0.0, False, attn_mask=bias, scale=scale
        )
        to_query_too, *to_own = attend_backward(grad, query, key, value, out, log, 0.0, True, scale=scale)
        return _apart(to_query, G) + to_query_too, *to_prompt, *to_own, None, None, None


def attend_in_products(
    query: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    G: int,
) -> Tensor:
    """Do what `SharedPromptAttention` does, with all scores at hand.

    In bfloat16, forward and backward take a third of the time of the fused attention, whose backward pass is slower
    there than in float32. The scores of long sequences would take too much memory. They are rounded to bfloat16, as
    in transformers' eager attention.
    """
    N, heads, S, d = key.shape  # heads: H_kv
    P = bias.shape[3]
    q = (query * scale).reshape(N, heads, -1, d)  # (N, H_kv, per * S, d)
    on_prompt = _together(q, G) @ prompt_key.transpose(2, 3) + bias  # (B, H_kv, G * per * S, P)
    on_own = (q @ key.transpose(2, 3)).view(N, heads, -1, S, S) + _causal(S, query)  # (N, H_kv, per, S, S)
    shares = torch.softmax(torch.cat([on_prompt, _together(on_own.flatten(2, 3), G)], dim=3), dim=3)
    out = _apart(shares[..., :P] @ prompt_value, G) + _apart(shares[..., P:], G) @ value  # (N, H_kv, per * S, d_v)
    return out.reshape(N, query.shape[1], S, -1)


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Let prompts attend to themselves, with all scores at hand: (B, H, P, d), (B, H_kv, P, d) -> (B, H, P, d_v)."""
    B, heads, P, d = key.shape
    q = (query * scale).reshape(B, heads, -1, d)  # (B, H_kv, per * P, d)
    scores = (q @ key.transpose(2, 3)).view(B, heads, -1, P, P) + _causal(P, query)
    return (torch.softmax(scores, dim=4).flatten(2, 3) @ value).view(B, query.shape[1], P, -1)


def _causal(S: int, like: Tensor) -> Tensor:
    """0 where a position may look, minus infinity where it may not: (S, S)."""
    return torch.full((S, S), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def _together(x: Tensor, G: int) -> Tensor:
    """A group's rows one after the other: (B * G, H, S, ...) -> (B, H, G * S, ...)."""
    return x.view(-1, G, *x.shape[1:]).transpose(1, 2).flatten(2, 3)


def _apart(x: Tensor, G: int) -> Tensor:
    """(B, H, G * S, ...) -> (B * G, H, S, ...)."""
    return x.reshape(*x.shape[:2], G, -1, *x.shape[3:]).transpose(1, 2).flatten(0, 1)
