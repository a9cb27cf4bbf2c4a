"""Log-probabilities of tokens from hidden states, without the (n, V) tensor of all logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.linear import onednn_linear, product_dtype

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
    if x.dtype == weight.dtype and product_dtype(x.dtype, x.device):
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
        for rows in _chunks(hidden.shape[0], chunk):
            near = None if candidates is None else candidates[rows]
            masses, total, logprobs[rows] = _softmax(hidden[rows], weight, bias, tokens[rows], temperature, near)
            if slopes is not None:
                mean = _product(masses.to(weight.dtype), weight.t()) / total  # E[weight] under the softmax
                slopes[rows] = ((weight[tokens[rows]] - mean) / temperature).to(slopes.dtype)
            del masses  # before there are the next logits
        ctx.save_for_backward(slopes if ahead else hidden, weight, bias, tokens, candidates)
        ctx.temperature, ctx.chunk, ctx.ahead = temperature, chunk, ahead
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved, weight, bias, tokens, candidates = ctx.saved_tensors
        factors = grad.unsqueeze(1)  # (n, 1)
        if ctx.ahead:
            return (saved * factors).to(saved.dtype), None, None, None, None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.empty_like(saved) if needs_hidden else None
        for_weight = torch.zeros_like(weight) if needs_weight else None
        for_bias = torch.zeros_like(bias) if needs_bias else None
        for rows in _chunks(saved.shape[0], ctx.chunk):
            near = None if candidates is None else candidates[rows]
            masses, total, _ = _softmax(saved[rows], weight, bias, tokens[rows], ctx.temperature, near)
            slope = masses.div_(-total)  # (onehot - softmax) * grad / temperature
            slope.scatter_add_(1, tokens[rows].unsqueeze(1), torch.ones_like(total))
            slope = slope.mul_(factors[rows] / ctx.temperature).to(weight.dtype)
            if for_hidden is not None:
                for_hidden[rows] = _product(slope, weight.t())
            if for_weight is not None:
                for_weight.addmm_(slope.t(), saved[rows])
            if for_bias is not None:
                for_bias += slope.sum(0)
            del masses, slope
        return for_hidden, for_weight, for_bias, None, None, None, None


def _chunks(n: int, chunk: int) -> list[slice]:
    return [slice(at, at + chunk) for at in range(0, n, chunk)]


def _softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float,
    candidates: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax times its total, the total, and the tokens' log-probabilities: (c, V), (c, 1), (c,).

    One tensor of V columns at a time, float32 at least, overwritten in place.
    """
    logits = _product(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits /= temperature
    chosen = logits.gather(1, tokens.unsqueeze(1))
    if candidates is not None:
        places = candidates.long()
        logits = torch.full_like(logits, -torch.inf).scatter_(1, places, logits.gather(1, places))
    largest = logits.amax(dim=1, keepdim=True)
    masses = logits.sub_(largest).exp_()
    total = masses.sum(dim=1, keepdim=True)
    return masses, total, (chosen - largest - total.log()).squeeze(1)
