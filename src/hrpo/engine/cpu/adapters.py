"""Adapters on CPUs, their products by oneDNN where that is faster."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.engine.adapters import AdapterProducts
from hrpo.engine.cpu.linear import onednn_linear, product_dtype


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, contiguous."""
    if product_dtype(x.dtype, x.device) == torch.float32:  # see `OneDNN`
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _serves(weight: Tensor) -> bool:
    """Whether adapters beside such a weight are rounded in a rollout, too; without instructions for it they are not."""
    return weight.dtype != torch.bfloat16 or product_dtype(torch.bfloat16, weight.device) == torch.bfloat16


PRODUCTS = AdapterProducts(_product, _serves)
