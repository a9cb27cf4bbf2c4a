"""Matrix products on CPUs through oneDNN, and own ones for decoding: those of `torch.nn.functional.linear`, faster.

For float32 the default library reaches half the rate of oneDNN on some CPUs, and for a few dozen rows a third; weights
packed ahead gain once more. docs/performance.md has the figures.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hrpo.engine.cpu.build import Compiled
from hrpo.engine.inference_model import LinearParts

# oneDNN makes code for products of each new number of rows, .7 MB in half a millisecond, and keeps that of the last
# thousand, twice: updates of sequences of ever other lengths would come to hold a gigabyte, scattered over the heap.
# A block that is recomputed has some 30 kinds of products, forward and back; with fewer, each is made anew for each
# block. Read at a first product.
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
for cache in CACHES:
    os.environ.setdefault(cache, "32")

_linear = torch.ops.mkldnn._linear_pointwise.default
BLOCK = 64  # columns of a weight that stand together for `csrc/multiply.cpp`
LEAST_BLOCKS = 4  # for each thread: they are what threads share, and some would have next to none
PACKED_ROWS = 32  # the weights are laid out for about as many rows; any number works


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """Return what oneDNN multiplies matrices of this type in, here; None where it does not serve them.

    bfloat16 is float32 on CPUs without instructions for it: the same products, ten times faster than emulated ones.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if dtype == torch.bfloat16:
        return dtype if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return dtype if dtype == torch.float32 else None


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, no gradient: (..., I), (O, I) plain or packed -> (..., O) in the dtype of x."""
    dtype = product_dtype(x.dtype, x.device) or x.dtype
    if not weight.is_mkldnn:
        weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    out: Tensor = _linear(x.to(dtype), weight, bias, "none", [], "")
    return out.to(x.dtype)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            onednn_linear(grad, weight.t()) if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


class OneDNN(TorchFunctionMode):
    """Within it, linear layers on the CPU run through oneDNN, forward and backward, where that is faster.

    It is for float32, and for bfloat16 on CPUs without instructions for it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and not torch.is_autocast_enabled("cpu"):
            x, weight, bias = (*args, None)[:3]
            if x.dtype == weight.dtype and product_dtype(x.dtype, x.device) == torch.float32:
                return _OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class CompiledWeight(ctypes.Structure):
    """`Weight` of the C++ code."""

    _fields_ = (
        ("numbers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("I", "O")),
        ("plain", ctypes.c_bool),
    )


class CompiledLayer(ctypes.Structure):
    """`Layer` of the C++ code."""

    _fields_ = (*((name, CompiledWeight) for name in ("weight", "A", "B")), ("bias", ctypes.c_void_p))


class PackedProduct:
    """The products of layers that read the same tensor, done in one with weights packed ahead.

    Compiled code (`csrc/layer.h`) multiplies, where there is any: a few dozen rows faster than oneDNN, and adapters at
    once. In bfloat16 it needs instructions that some CPUs have.

    Args:
        layers: of the same dtype and I.
        library: compiled code.
        in_place: pack no weight of a single layer that compiled code can read as it is: it takes a fifth longer, and no
            memory.

    """

    def __init__(
        self, layers: Sequence[LinearParts], library: Compiled | None = None, *, in_place: bool = False
    ) -> None:
        first = layers[0].weight
        self.dtype, self.sizes = first.dtype, [len(layer.weight) for layer in layers]
        self.in_features = first.shape[1]
        self.inner_dtype = product_dtype(first.dtype, first.device)
        weight = first if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        factors = None
        if any(layer.A is not None for layer in layers):
            As = [first[:0] if layer.A is None else layer.A for layer in layers]
            Bs = [first.new_zeros(len(layer.weight), 0) if layer.B is None else layer.B for layer in layers]
            diagonal = torch.block_diag(*Bs)  # type: ignore[no-untyped-call]
            factors = torch.cat(As), diagonal
        self.multiply = None
        even = not any(part.shape[1] % 2 for part in (weight, *(factors or ())))  # bfloat16 comes in pairs
        if library and even and len(weight) >= LEAST_BLOCKS * BLOCK * torch.get_num_threads():
            self.multiply = library.find("multiply", weight.new_empty(0, dtype=self.inner_dtype))
        as_it_is = weight is first and weight.dtype == self.inner_dtype and weight.is_contiguous()
        plain = in_place and as_it_is and self.multiply is not None
        self.weight = weight.detach() if plain else self.pack(weight)
        self.factors = None if factors is None else (self.pack(factors[0]), self.pack(factors[1]))
        self.bias = None
        if any(layer.bias is not None for layer in layers):
            biases = [first.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
            self.bias = torch.cat(biases).detach().to(self.inner_dtype)
        self.layer = CompiledLayer()
        if self.multiply:
            self.layer.weight = CompiledWeight(self.weight.data_ptr(), self.in_features, len(weight), plain)
            if factors is not None and self.factors is not None:
                (A, B), rank = self.factors, len(factors[0])
                self.layer.A = CompiledWeight(A.data_ptr(), self.in_features, rank)
                self.layer.B = CompiledWeight(B.data_ptr(), rank, len(weight))
            self.layer.bias = None if self.bias is None else self.bias.data_ptr()
        self.x: Tensor | None = None
        self.outs: dict[int, Tensor] = {}

    def pack(self, weight: Tensor) -> Tensor:
        """Lay a weight out for compiled code, or oneDNN."""
        weight = weight.detach().to(self.inner_dtype)
        if self.multiply:
            return _in_blocks(weight)
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        return packed

    def read(self, x: Tensor, layer: int) -> Tensor:
        """Return what one of the layers makes of x, (..., I) -> (..., O); the first to ask does it for all."""
        if x is not self.x or layer not in self.outs:
            self.x, self.outs = x, dict(enumerate(self.compute(x)))
        out = self.outs.pop(layer)
        if not self.outs:
            self.x = None
        return out

    def compute(self, x: Tensor) -> list[Tensor]:
        """(..., I) -> (..., O) of each layer."""
        x = x.to(self.inner_dtype).contiguous()
        if self.multiply:
            out = x.new_empty(*x.shape[:-1], sum(self.sizes))
            S = x.numel() // x.shape[-1]
            self.multiply(x.data_ptr(), ctypes.byref(self.layer), out.data_ptr(), S, torch.get_num_threads())
        else:
            out = _linear(x, self.weight, self.bias, "none", [], "")
            if self.factors is not None:
                A, B = self.factors
                out += _linear(_linear(x, A, None, "none", [], ""), B, None, "none", [], "")
        out = out.to(self.dtype)
        return list(torch.split(out, self.sizes, dim=-1)) if len(self.sizes) > 1 else [out]


def _in_blocks(weight: Tensor) -> Tensor:
    """(O, I) -> (O / 64, I, 64), with zeros in what the last block has too much; bfloat16 (O / 64, I / 2, 64, 2)."""
    O, I = weight.shape  # noqa: E741
    blocks = weight.new_zeros(-(-O // BLOCK), I, BLOCK)
    whole = O // BLOCK
    blocks[:whole] = weight[: whole * BLOCK].view(whole, BLOCK, I).transpose(1, 2)
    if O % BLOCK:
        blocks[whole, :, : O % BLOCK] = weight[whole * BLOCK :].t()
    if weight.dtype == torch.bfloat16:
        return blocks.view(-1, I // 2, 2, BLOCK).transpose(2, 3).contiguous()
    return blocks


class PackedLinear(nn.Module):
    """A linear layer for decoding only, which keeps no gradient: one of those that share a `PackedProduct`.

    Args:
        product: what it reads.
        index: its place there.
        in_features: I.

    """

    def __init__(self, product: PackedProduct, index: int, in_features: int) -> None:
        super().__init__()
        self.product, self.index, self.in_features = product, index, in_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return self.product.read(x, self.index)
