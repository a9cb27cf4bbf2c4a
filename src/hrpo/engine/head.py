"""Log-probabilities of tokens from hidden states, without the (n, V) tensor of all logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hrpo.engine.interface import TrainingKernels

Linear = Callable[..., Tensor]  # as `torch.nn.functional.linear`


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    candidates: Tensor | None = None,
    kernels: TrainingKernels | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """Return log softmax(hidden @ weight.T + bias)[tokens], with gradient.

    Some positions and some of the vocabulary at a time, with the largest logit and the sum of exponentials so far
    (online softmax, arXiv:1805.02867).

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
        kernels: of the device.
        tile: positions and tokens of the vocabulary at a time; None leaves it to the kernels.

    Returns:
        (n,), float32 at least.

    """
    kernels = kernels or TrainingKernels()
    arguments = (hidden, weight, bias, tokens, temperature, candidates, tile or kernels.head_tile, kernels.linear)
    out: Tensor = _HeadLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


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
        tile: tuple[int, int],
        linear: Linear,
    ) -> Tensor:
        ahead = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]
        chosen = hidden.new_zeros(len(hidden), 1, dtype=torch.promote_types(hidden.dtype, torch.float32))
        norms = torch.empty_like(chosen)  # logsumexp
        slopes = torch.empty_like(hidden) if ahead else None  # d logprob / d hidden
        for rows in _spans(len(hidden), tile[0]):
            x, token = hidden[rows], tokens[rows].unsqueeze(1)
            largest = torch.full_like(chosen[rows], torch.finfo(chosen.dtype).min)
            total = torch.zeros_like(largest)
            sums = torch.zeros_like(x, dtype=chosen.dtype)  # of exp(logit) * weight
            for columns in _spans(len(weight), tile[1]):
                logits = _logits(linear, x, weight, bias, temperature, columns)
                place, inside = _within(token, columns)
                chosen[rows] += torch.where(inside, logits.gather(1, place), 0)
                if candidates is not None:
                    _only(logits, candidates[rows], columns)
                before, largest = largest, torch.maximum(largest, logits.amax(dim=1, keepdim=True))
                shrink = (before - largest).exp_()
                masses = logits.sub_(largest).exp_()
                total = total * shrink + masses.sum(dim=1, keepdim=True)
                if ahead:
                    sums.mul_(shrink).add_(linear(masses.to(weight.dtype), weight[columns].t()))
                del logits, masses  # before there are the next ones
            norms[rows] = largest + total.log()
            if slopes is not None:
                slopes[rows] = ((weight[tokens[rows]] - sums / total) / temperature).to(slopes.dtype)
        ctx.save_for_backward(slopes if ahead else hidden, weight, bias, tokens, candidates, norms)
        ctx.temperature, ctx.tile, ctx.ahead, ctx.linear = temperature, tile, ahead, linear
        return (chosen - norms).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved, weight, bias, tokens, candidates, norms = ctx.saved_tensors
        factors = grad.unsqueeze(1)  # (n, 1)
        if ctx.ahead:
            return (saved * factors).to(saved.dtype), *7 * [None]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.zeros_like(saved, dtype=norms.dtype) if needs_hidden else None
        for_weight = torch.zeros_like(weight) if needs_weight else None
        for_bias = torch.zeros_like(bias) if needs_bias else None
        for rows in _spans(len(saved), ctx.tile[0]):
            for columns in _spans(len(weight), ctx.tile[1]):
                logits = _logits(ctx.linear, saved[rows], weight, bias, ctx.temperature, columns)
                if candidates is not None:
                    _only(logits, candidates[rows], columns)
                slope = logits.sub_(norms[rows]).exp_().neg_()  # (onehot - softmax) * grad / temperature
                place, inside = _within(tokens[rows].unsqueeze(1), columns)
                slope.scatter_add_(1, place, inside.to(slope.dtype))
                slope = slope.mul_(factors[rows] / ctx.temperature).to(weight.dtype)
                if for_hidden is not None:
                    for_hidden[rows] += ctx.linear(slope, weight[columns].t())
                if for_weight is not None:
                    for_weight[columns].addmm_(slope.t(), saved[rows])
                if for_bias is not None:
                    for_bias[columns] += slope.sum(0)
                del logits, slope
        for_hidden = None if for_hidden is None else for_hidden.to(saved.dtype)
        return for_hidden, for_weight, for_bias, *5 * [None]


def _spans(n: int, length: int) -> list[slice]:
    return [slice(at, min(at + length, n)) for at in range(0, n, length)]


def _logits(
    linear: Linear, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, columns: slice
) -> Tensor:
    """Logits of a part of the vocabulary, float32 at least: (c, D) -> (c, columns)."""
    logits = linear(hidden, weight[columns], None if bias is None else bias[columns])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1 else logits.div_(temperature)


def _within(tokens: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return places of tokens among some columns, any place for those of other columns, and which are not of others."""
    places = tokens.long() - columns.start
    width = columns.stop - columns.start
    return places.clamp(0, width - 1), (places >= 0) & (places < width)


def _only(logits: Tensor, candidates: Tensor, columns: slice) -> None:
    """Set all logits but the candidates' to -inf: (c, columns), (c, K)."""
    places, inside = _within(candidates, columns)
    seen = torch.zeros_like(logits).scatter_add_(1, places, inside.to(logits.dtype))
    logits.masked_fill_(seen == 0, -torch.inf)
