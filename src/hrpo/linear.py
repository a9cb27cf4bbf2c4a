"""Matrix products through oneDNN on CPUs: the same products as `torch.nn.functional.linear`, faster.

For float32 the default library reaches half the rate of oneDNN on some CPUs, and for a few dozen rows a third; weights
packed ahead gain once more. docs/performance.md has the figures.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_linear = torch.ops.mkldnn._linear_pointwise.default
_linear_plus = torch.ops.mkldnn._linear_pointwise.binary
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


class PackedLinear(nn.Module):
    """A linear layer with its weight packed ahead, for decoding only; it keeps no gradient.

    Args:
        weight: (O, I).
        bias: (O,) or None.
        low_rank: factors A (r, I) and B (O, r), scale included, of an adapter that must not be added to the weight.

    """

    def __init__(self, weight: Tensor, bias: Tensor | None, low_rank: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.dtype, self.product_dtype = weight.dtype, product_dtype(weight.dtype, weight.device)
        self.out_features, self.in_features = weight.shape
        weight = weight.detach().to(self.product_dtype)
        bias = None if bias is None else bias.detach().to(self.product_dtype)
        self.B: Tensor | None = None
        if low_rank is not None:  # A stands below the weight: one product gives x @ weight.T and x @ A.T
            A, B = (factor.detach().to(self.product_dtype) for factor in low_rank)
            weight = torch.cat([weight, A])
            bias = None if bias is None else torch.cat([bias, bias.new_zeros(len(A))])
            self.B = B.contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        out: Tensor = _linear(x.to(self.product_dtype), self.weight, self.bias, "none", [], "")
        if self.B is not None:
            out, low = torch.split(out, [self.out_features, self.B.shape[1]], dim=-1)
            out = _linear_plus(low, out, self.B, None, "add")
        return out.to(self.dtype)
