"""Training a LoRA adapter (arXiv:2106.09685) and running its frozen layer, in one operation and in the layer's dtype.

PEFT runs them one by one, in float32 beside a bfloat16 layer, and adds the results: several passes over (S, O) tensors,
whose casts are kept for the backward pass. Here the adapter's float32 weights are rounded for the products, as in a
rollout (`copies.py`) and under autocast; their gradients are float32 again. Where a rollout in bfloat16 keeps them in
float32, on devices that pack no weights, PEFT does what it does.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.nn import functional as F

from hrpo.copies import active_adapters, linear_layers
from hrpo.linear import onednn_linear, product_dtype


class Adapted(NamedTuple):
    """A frozen linear layer, weight (O, I) and bias (O,), and its adapter, A (r, I) and B (O, r), if it has one."""

    weight: Tensor
    bias: Tensor | None
    A: Tensor | None = None
    B: Tensor | None = None
    scale: float = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x @ weight.T + bias + low @ B.T * scale, and low = x @ A.T: (..., I) -> (..., O), (..., r)."""
        out = _product(x, self.weight, self.bias)
        if self.A is None or self.B is None:
            return out, None
        low = _product(x, self.A.to(x.dtype))
        out.view(-1, out.shape[-1]).addmm_(_rows(low), (self.B * self.scale).to(x.dtype).t())
        return out, low

    def backward(
        self, x: Tensor, low: Tensor | None, grad: Tensor, *, needs_x: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, A and B, given that of the output."""
        for_x = _product(grad, self.weight.t()) if needs_x else None
        if self.A is None or self.B is None or low is None:
            return for_x, None, None
        rows = _rows(grad)
        for_low = _product(rows, (self.B * self.scale).to(grad.dtype).t())  # (n, r)
        for_B = _product(_rows(low).t(), rows.t()).t().to(self.B.dtype) * self.scale
        for_A = _product(for_low.t(), _rows(x).t()).to(self.A.dtype)
        if for_x is not None:
            for_x.view(-1, for_x.shape[-1]).addmm_(for_low, self.A.to(grad.dtype))
        return for_x, for_A, for_B


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        out, low = Adapted(weight, bias, A, B, scale).forward(x)
        ctx.save_for_backward(x, low, weight, A, B)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, low, weight, A, B = ctx.saved_tensors
        layer = Adapted(weight, None, A, B, ctx.scale)
        for_x, for_A, for_B = layer.backward(x, low, grad, needs_x=ctx.needs_input_grad[0])
        return for_x, None, None, for_A, for_B, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, contiguous."""
    if product_dtype(x.dtype, x.device) == torch.float32:  # see `OneDNN`
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _rows(x: Tensor) -> Tensor:
    """(..., I) -> (n, I)."""
    return x.reshape(-1, x.shape[-1])


def adapted(layer: Any) -> Adapted:
    """Return what a simple LoRA layer, or a plain one, is made of at present."""
    base: Any = layer.base_layer if isinstance(layer, LoraLinear) else layer
    if base is layer or layer.disable_adapters:
        return Adapted(base.weight, base.bias)
    (name,) = active_adapters(layer)
    return Adapted(base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _forward(layer: Any, x: Tensor) -> Tensor:
    if layer.disable_adapters:
        out: Tensor = layer.base_layer(x)
        return out
    fused: Tensor = _AdaptedLinear.apply(x, *adapted(layer))  # type: ignore[no-untyped-call]
    return fused


def simple(layer: Any) -> bool:
    """Whether it is one plain adapter beside a frozen layer, and nobody else has put a forward of theirs there."""
    if layer.merged or len(active_adapters(layer)) != 1:
        return False
    (name,), base = active_adapters(layer), layer.base_layer
    if base.weight.dtype == torch.bfloat16 and product_dtype(torch.bfloat16, base.weight.device) != torch.bfloat16:
        return False
    dropped = layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)
    frozen = not any(p.requires_grad for p in base.parameters())
    return frozen and not dropped and "forward" not in vars(layer)


@contextlib.contextmanager
def fused_adapters(lm: Any) -> Iterator[None]:
    """Within it, a model's simple LoRA layers run so; all others as they are."""
    layers = [layer for _, layer in linear_layers(lm) if isinstance(layer, LoraLinear) and simple(layer)]
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
