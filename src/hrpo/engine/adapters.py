"""Training a LoRA adapter (arXiv:2106.09685) and running its frozen layer, in one operation and in the layer's dtype.

PEFT runs them one by one, in float32 beside a bfloat16 layer, and adds the results: several passes over (S, O) tensors,
whose casts are kept for the backward pass. Here the adapter's float32 weights are rounded for the products, as in a
rollout (`inference_model.py`) and under autocast; their gradients are float32 again.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.nn import functional as F

from hrpo.engine.layers import active_adapters, linear_layers

Linear = Callable[..., Tensor]  # as torch.nn.functional.linear


class Adapted(NamedTuple):
    """A frozen linear layer, weight (O, I) and bias (O,), and its adapter, A (r, I) and B (O, r), if it has one."""

    weight: Tensor
    bias: Tensor | None
    A: Tensor | None = None
    B: Tensor | None = None
    scale: float = 1.0

    def columns(self, dtype: torch.dtype) -> tuple[Tensor, float]:
        """Return B.T, (r, O), and what to multiply its products by: the scale, unless it is in what was rounded."""
        if self.B is None:
            raise ValueError("a layer without an adapter")
        if dtype == self.B.dtype:
            return self.B.t(), self.scale
        return (self.B * self.scale).to(dtype).t(), 1.0


class AdapterProducts:
    """Products of layers with adapters, forward and back.

    Args:
        linear: x @ weight.T + bias, contiguous, without gradient.
        serves: whether it multiplies weights of this type as they are.

    """

    def __init__(self, linear: Linear = F.linear, serves: Callable[[Tensor], bool] = lambda weight: True) -> None:
        self.linear, self.serves = linear, serves

    def run(self, layers: Sequence[Adapted], x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Run layers that read the same: (..., I) -> (..., O) each, and what `low_of` gives."""
        low = self.low_of(layers, x)
        lows = _split(low, layers, dim=1)
        outs = []
        for layer in layers:
            out = self.linear(x, layer.weight, layer.bias)
            if layer.B is not None:
                columns, factor = layer.columns(x.dtype)
                _rows(out).addmm_(next(lows), columns, alpha=factor)
            outs.append(out)
        return outs, low

    def low_of(self, layers: Sequence[Adapted], x: Tensor) -> Tensor | None:
        """(..., I) -> x @ A.T of all adapters, (n, r of all), where there are some."""
        return self.linear(_rows(x), _side_by_side(layers, x.dtype)) if _ranks(layers) else None

    def run_back(
        self, layers: Sequence[Adapted], x: Tensor, low: Tensor | None, grads: Sequence[Tensor], *, needs_x: bool = True
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return the gradient of x, if it is wanted, and those of each layer's A and B, given those of the outputs."""
        for_x: Tensor | None = None
        for layer, grad in zip(layers, grads, strict=True) if needs_x else ():
            part = self.linear(grad, layer.weight.t())
            for_x = part if for_x is None else for_x.add_(part)
        if low is None:
            return for_x, [None] * (2 * len(layers))
        rows = {i: _rows(grad) for i, grad in enumerate(grads) if layers[i].B is not None}
        for_low = _joined([self._for_low(part, *layers[i].columns(x.dtype)) for i, part in rows.items()], dim=1)
        if for_x is not None:
            _rows(for_x).addmm_(for_low, _side_by_side(layers, x.dtype))
        lows, for_As = _split(low, layers, dim=1), _split(self.linear(for_low.t(), _rows(x).t()), layers, dim=0)
        parameters: list[Tensor | None] = []
        for i, layer in enumerate(layers):
            if layer.A is None or layer.B is None:
                parameters += None, None
            else:
                for_B = self.linear(next(lows).t(), rows[i].t()).t()
                parameters += next(for_As).to(layer.A.dtype), for_B.to(layer.B.dtype) * layer.scale
        return for_x, parameters

    def _for_low(self, grad: Tensor, columns: Tensor, factor: float) -> Tensor:
        """Return the gradient of x @ A.T: (n, O) -> (n, r)."""
        out = self.linear(grad, columns)
        return out if factor == 1 else out.mul_(factor)

    def simple(self, layer: Any) -> bool:
        """Whether a LoRA layer is one plain adapter beside a frozen layer, and nobody else has put a forward there."""
        if layer.merged or len(active_adapters(layer)) != 1:
            return False
        (name,), base = active_adapters(layer), layer.base_layer
        dropped = layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)
        frozen = not any(p.requires_grad for p in base.parameters())
        return self.serves(base.weight) and frozen and not dropped and "forward" not in vars(layer)

    @contextlib.contextmanager
    def fused(self, lm: Any) -> Iterator[None]:
        """Within it, a model's simple LoRA layers run so; all others as they are."""
        layers = [layer for _, layer in linear_layers(lm) if isinstance(layer, LoraLinear) and self.simple(layer)]
        for layer in layers:
            vars(layer)["forward"] = functools.partial(self._forward, layer)
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)["forward"]

    def _forward(self, layer: Any, x: Tensor) -> Tensor:
        if layer.disable_adapters:
            out: Tensor = layer.base_layer(x)
            return out
        fused: Tensor = _AdaptedLinear.apply(x, *adapted(layer), self)  # type: ignore[no-untyped-call]
        return fused


def _split(x: Tensor | None, layers: Sequence[Adapted], dim: int) -> Iterator[Tensor]:
    """Take apart what adapters have side by side."""
    return iter(() if x is None else torch.split(x, _ranks(layers), dim))


def _ranks(layers: Sequence[Adapted]) -> list[int]:
    """Return r of those that have an adapter."""
    return [len(layer.A) for layer in layers if layer.A is not None]


def _side_by_side(layers: Sequence[Adapted], dtype: torch.dtype) -> Tensor:
    """Return the A of all adapters: (r of all, I)."""
    return _joined([layer.A for layer in layers if layer.A is not None], dim=0).to(dtype)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Return tensors side by side; no copy of one that is alone."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: float,
        products: AdapterProducts,
    ) -> Tensor:
        (out,), low = products.run([Adapted(weight, bias, A, B, scale)], x)
        ctx.save_for_backward(x, low, weight, A, B)
        ctx.scale, ctx.products = scale, products
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, low, weight, A, B = ctx.saved_tensors
        layer = Adapted(weight, None, A, B, ctx.scale)
        needs_x = ctx.needs_input_grad[0]
        for_x, (for_A, for_B) = ctx.products.run_back([layer], x, low, [grad], needs_x=needs_x)
        return for_x, None, None, for_A, for_B, None, None


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
