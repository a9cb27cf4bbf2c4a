"""Linear layers for decoding: those that read the same tensor are one product, their adapters included."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrpo.engine.inference_model import LinearParts


class JoinedProduct:
    """The products of layers that read the same tensor, in two calls with adapters and in one without.

    The factors A of adapters stand below the weights of several layers, so that one product gives what both make of x,
    and another adds what the factors B make of A's part. A single layer shares its weight with the model where it can,
    and A is a product of its own.

    Args:
        layers: of the same dtype and I.

    """

    def __init__(self, layers: Sequence[LinearParts]) -> None:
        self.sizes = [len(layer.weight) for layer in layers]
        self.width, self.in_features = sum(self.sizes), layers[0].weight.shape[1]  # O of all, I
        self.dtype = layers[0].weight.dtype
        self.weight, self.bias, self.A, self.B = _joined(layers)
        self.x: Tensor | None = None  # what was read last, and what is left of what came of it
        self.outs: dict[int, Tensor] = {}

    def load(self, layers: Sequence[LinearParts]) -> None:
        """Take the layers' numbers as they are now, into the same tensors: those are what a captured step reads."""
        for own, new in zip((self.weight, self.bias, self.A, self.B), _joined(layers), strict=True):
            if own is not None and new is not None and own.data_ptr() != new.data_ptr():
                own.copy_(new)

    def compute(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(n, I) -> (n, O of all); a residual, (n, O), is added to what a single layer gives."""
        if residual is None:
            out = F.linear(x, self.weight, self.bias)
        else:
            out = torch.addmm(residual, x, self.weight.t())
            out = out if self.bias is None else out.add_(self.bias)
        if self.B is None:
            return out
        low = out[:, self.width :] if self.A is None else F.linear(x, self.A)  # (n, r)
        return out[:, : self.width].addmm_(low, self.B)

    def read(self, x: Tensor, layer: int) -> Tensor:
        """Return what one of the layers makes of x, (..., I) -> (..., O); the first to ask does it for all."""
        if x is not self.x or layer not in self.outs:
            parts = torch.split(self.compute(x.reshape(-1, x.shape[-1]).to(self.dtype)), self.sizes, dim=1)
            self.x, self.outs = x, {at: part.view(*x.shape[:-1], -1) for at, part in enumerate(parts)}
        out = self.outs.pop(layer)
        if not self.outs:
            self.x = None
        return out


def _joined(layers: Sequence[LinearParts]) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return weight, bias, A and B: (O, I), (O,), (r, I), (r, O), A below the weight where there are several layers."""
    weights = [layer.weight.detach() for layer in layers]
    first, adapted = weights[0], [layer for layer in layers if layer.A is not None]
    bias = None
    if any(layer.bias is not None for layer in layers):
        biases = [first.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
        bias = torch.cat(biases).detach().to(first.dtype)
    if not adapted:
        return first if len(layers) == 1 else torch.cat(weights), bias, None, None
    As = [layer.A for layer in layers if layer.A is not None]
    Bs = [layer.weight.new_zeros(len(layer.weight), 0) if layer.B is None else layer.B for layer in layers]
    B = torch.block_diag(*Bs).t().contiguous()  # type: ignore[no-untyped-call]
    if len(layers) == 1:
        return first, bias, As[0].detach().contiguous(), B.detach()
    if bias is not None:
        bias = torch.cat([bias, bias.new_zeros(len(B))])
    return torch.cat([*weights, *As]).detach(), bias, None, B.detach()


class JoinedLinear(nn.Module):
    """A linear layer for decoding only, which keeps no gradient: one of those that share a `JoinedProduct`.

    Args:
        product: what it reads.
        index: its place there.

    """

    def __init__(self, product: JoinedProduct, index: int) -> None:
        super().__init__()
        self.product, self.index, self.in_features = product, index, product.in_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return self.product.read(x, self.index)


def product_of(*layers: nn.Module) -> JoinedProduct | None:
    """Return the product that does all of these layers' work, and no more; None where there is none."""
    product = layers[0].product if isinstance(layers[0], JoinedLinear) else None
    indices = [layer.index for layer in layers if isinstance(layer, JoinedLinear) and layer.product is product]
    if product is None or indices != list(range(len(product.sizes))) or len(indices) != len(layers):
        return None
    return product
