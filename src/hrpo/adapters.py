"""Training a LoRA adapter (arXiv:2106.09685) and running its frozen layer, in one operation and in the layer's dtype.

PEFT runs them one by one, in float32 beside a bfloat16 layer, and adds the results: several passes over (S, O) tensors,
whose casts are kept for the backward pass. Here the adapter's float32 weights are rounded for the products, as in a
rollout (`copies.py`) and under autocast; their gradients are float32 again. Where a rollout in bfloat16 keeps them in
float32, on devices that pack no weights, PEFT does what it does.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.nn import functional as F

from hrpo.copies import linear_layers
from hrpo.linear import onednn_linear, product_dtype


class _AdaptedLinear(torch.autograd.Function):
    """x @ weight.T + bias + (x @ A.T) @ B.T * scale: (..., I), (O, I), (O,), (r, I), (O, r) -> (..., O)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        low = _product(x, A.to(x.dtype))  # (..., r)
        out = _product(x, weight, bias)
        out.view(-1, out.shape[-1]).addmm_(_rows(low), (B * scale).to(x.dtype).t())
        ctx.save_for_backward(x, low, weight, A, B)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, low, weight, A, B = ctx.saved_tensors
        rows = _rows(grad)
        for_low = _product(rows, (B * ctx.scale).to(grad.dtype).t())  # (n, r)
        for_B = _product(_rows(low).t(), rows.t()).t().to(B.dtype) * ctx.scale
        for_A = _product(for_low.t(), _rows(x).t()).to(A.dtype)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = _product(grad, weight.t())
            for_x.view(-1, for_x.shape[-1]).addmm_(for_low, A.to(grad.dtype))
        return for_x, None, None, for_A, for_B, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, contiguous."""
    if product_dtype(x.dtype, x.device) == torch.float32:  # see `OneDNN`
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _rows(x: Tensor) -> Tensor:
    """(..., I) -> (n, I)."""
    return x.reshape(-1, x.shape[-1])


def _forward(layer: Any, x: Tensor) -> Tensor:
    base = layer.base_layer
    if layer.disable_adapters:
        out: Tensor = base(x)
        return out
    (name,) = layer.active_adapters
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    fused: Tensor = _AdaptedLinear.apply(x, base.weight, base.bias, A, B, layer.scaling[name])  # type: ignore[no-untyped-call]
    return fused


def _simple(layer: Any) -> bool:
    """Whether it is one plain adapter beside a frozen layer, and nobody else has put a forward of theirs there."""
    if layer.merged or len(layer.active_adapters) != 1 or layer.active_adapters[0] not in layer.lora_A:
        return False
    name, base = layer.active_adapters[0], layer.base_layer
    if base.weight.dtype == torch.bfloat16 and product_dtype(torch.bfloat16, base.weight.device) != torch.bfloat16:
        return False
    dropped = layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)
    frozen = not any(p.requires_grad for p in base.parameters())
    return frozen and not dropped and "forward" not in vars(layer)


@contextlib.contextmanager
def fused_adapters(lm: Any) -> Iterator[None]:
    """Within it, a model's simple LoRA layers run so; all others as they are."""
    layers = [layer for _, layer in linear_layers(lm) if isinstance(layer, LoraLinear) and _simple(layer)]
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
