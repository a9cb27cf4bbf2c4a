"""Log-probabilities of tokens from hidden states, without the (n, V) tensor of all logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.linear import has_onednn, onednn_linear

HEAD_CHUNK = 128  # positions whose V logits exist at a time


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    candidates: Tensor | None = None,
    chunk: int = HEAD_CHUNK,
) -> Tensor:
    """Return log softmax(hidden @ weight.T + bias)[tokens], with gradient.

    d logprob / d logits = onehot(token) - softmax, so that one more product with the weight gives the gradient of a
    position's hidden state up to a factor, which is known only in the backward pass. Where the weight is frozen it is
    made in the forward pass, while the logits are there.

    Args:
        hidden: (n, D).
        weight: (V, D) of the head, in the same dtype.
        bias: (V,) or None.
        tokens: (n,).
        temperature: divides the logits.
        candidates: (n, K) normalise over these only; None over all of V.
        chunk: positions at a time.

    Returns:
        (n,), float32 at least.

    """
    arguments = (hidden, weight, bias, tokens, temperature, candidates, chunk)
    out: Tensor = _HeadLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype == weight.dtype and has_onednn(x.dtype, x.device):
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        candidates: Tensor | None,
        chunk: int,
    ) -> Tensor:
        ahead = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]
        logprobs = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32))
        slopes = torch.empty_like(hidden) if ahead else None  # d logprob / d hidden
        for at in range(0, hidden.shape[0], chunk):
            rows = slice(at, at + chunk)
            near = None if candidates is None else candidates[rows]
            logits, norms = _logits(hidden[rows], weight, bias, temperature, near)
            logprobs[rows] = (logits.gather(1, tokens[rows].unsqueeze(1)) - norms).squeeze(1)
            if slopes is not None:
                slope = _slope_(logits, norms, tokens[rows], temperature, near)
                slopes[rows] = _product(slope.to(weight.dtype), weight.t())
        ctx.save_for_backward(slopes if ahead else hidden, weight, bias, tokens, candidates)
        ctx.temperature, ctx.chunk, ctx.ahead = temperature, chunk, ahead
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved, weight, bias, tokens, candidates = ctx.saved_tensors
        factors = grad.unsqueeze(1)  # (n, 1)
        if ctx.ahead:
            return saved * factors.to(saved.dtype), None, None, None, None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.empty_like(saved) if needs_hidden else None
        for_weight = torch.zeros_like(weight) if needs_weight else None
        for_bias = torch.zeros_like(bias) if needs_bias else None
        for at in range(0, saved.shape[0], ctx.chunk):
            rows = slice(at, at + ctx.chunk)
            near = None if candidates is None else candidates[rows]
            logits, norms = _logits(saved[rows], weight, bias, ctx.temperature, near)
            slope = _slope_(logits, norms, tokens[rows], ctx.temperature, near).mul_(factors[rows]).to(weight.dtype)
            if for_hidden is not None:
                for_hidden[rows] = _product(slope, weight.t())
            if for_weight is not None:
                for_weight.addmm_(slope.t(), saved[rows])
            if for_bias is not None:
                for_bias += slope.sum(0)
        return for_hidden, for_weight, for_bias, None, None, None, None


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, candidates: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits divided by the temperature, float32 at least, and their log-sum-exp: (c, V), (c, 1)."""
    logits = _product(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits /= temperature
    among = logits if candidates is None else logits.gather(1, candidates.long())
    return logits, among.logsumexp(dim=1, keepdim=True)


def _slope_(logits: Tensor, norms: Tensor, tokens: Tensor, temperature: float, candidates: Tensor | None) -> Tensor:
    """D logprob / d logits before the division: (onehot - softmax) / temperature, (c, V); takes the logits' place."""
    slope = logits.sub_(norms).exp_().neg_()
    if candidates is not None:
        places = candidates.long()
        slope = torch.zeros_like(slope).scatter_(1, places, slope.gather(1, places))
    slope.scatter_add_(1, tokens.unsqueeze(1), slope.new_ones(tokens.shape[0], 1))
    return slope.div_(temperature) if temperature != 1 else slope
