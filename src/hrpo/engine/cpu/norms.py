"""RMS normalisation (arXiv:1910.07467) on CPUs as one call of compiled code (`csrc/rms_norm.cpp`).

In transformers it is some seven small operations, two to four times in each block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hrpo.engine.cpu.build import Compiled

# Largest difference from the model's own, over 1: they sum in another order. In bfloat16, two of its steps.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}


class CompiledNorm(nn.Module):
    """An RMS norm that keeps no gradient: for decoding, and for what has its own (`trained_blocks.py`).

    Args:
        norm: the model's own; serves tensors of other types than its weight's, and refuses other widths.
        function: the compiled one.
        eps: is added to the mean of squares.
        offset: is added to the weight.
        twice: whether the result is rounded to the model's type before it is multiplied, too.

    """

    def __init__(self, norm: Any, function: Any, eps: float, offset: int, twice: bool) -> None:
        super().__init__()
        self.norm, self.function, self.dtype = norm, function, norm.weight.dtype
        self.scales, self.eps, self.twice = norm.weight.detach().float() + offset, eps, twice

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., D), in the place of `out` where compiled code serves x."""
        if x.dtype != self.dtype or x.shape[-1] != len(self.scales):
            normed: Tensor = self.norm(x)
            return normed
        x = x.contiguous()
        out = torch.empty_like(x) if out is None else out
        D = x.shape[-1]
        places = (x.data_ptr(), self.scales.data_ptr(), out.data_ptr(), x.numel() // D, D)
        self.function(*places, self.eps, self.twice, torch.get_num_threads())
        return out


def compiled_norms(lm: Any, library: Compiled) -> Iterator[tuple[nn.Module, CompiledNorm]]:
    """Yield a model's RMS norms, each with one that computes the same; tried, instead of kept as a list of names."""
    kinds: dict[type, tuple[int, bool] | None] = {}  # of each class: what is added to the weight, and `twice`
    for norm in lm.modules():
        own: dict[str, Any] = vars(norm)  # `getattr` takes ten times longer for what a module lacks
        eps = own.get("variance_epsilon", own.get("eps"))
        if not isinstance(eps, float) or [name for name, _ in norm.named_parameters()] != ["weight"]:
            continue
        function = library.find("rms_norm", norm.weight)
        whole = type(norm.weight.data) is Tensor  # no shard of one
        if not function or not whole or norm.weight.dim() != 1:
            continue
        if type(norm) not in kinds:
            kinds[type(norm)] = _kind(norm, function, eps)
        if kind := kinds[type(norm)]:
            yield norm, CompiledNorm(norm, function, eps, *kind)


@torch.no_grad()
def _kind(norm: Any, function: Any, eps: float) -> tuple[int, bool] | None:
    """Return what fits a norm best; None where nothing does."""
    x = torch.linspace(-3, 2, 2 * norm.weight.numel()).view(2, -1).to(norm.weight.dtype)
    expected = norm(x)
    differences = {
        kind: ((CompiledNorm(norm, function, eps, *kind)(x) - expected).abs() / (1 + expected.abs())).max().item()
        for kind in ((0, True), (0, False), (1, False), (1, True))
    }
    best = min(differences, key=differences.__getitem__)
    return best if differences[best] <= TOLERANCE[norm.weight.dtype] else None
