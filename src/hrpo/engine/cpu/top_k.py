"""The sampler's candidates as one call of compiled code (`csrc/candidates.cpp`).

It reads the logits twice, as they come; PyTorch makes two copies of them.
"""

import torch
from torch import Tensor

from hrpo.engine.cpu.build import Compiled


def top_k_compiled(
    library: Compiled, logits: Tensor, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return what `DecodingKernels.top_k` does; None where the library does not serve these logits, (n, V)."""
    function = library.find("candidates", logits)
    if not function:
        return None
    n, V = logits.shape
    logits = logits.contiguous()
    values, totals = torch.empty(n, k), torch.empty(n)
    ids = torch.empty(n, k, dtype=torch.long)
    results = (values.data_ptr(), ids.data_ptr(), totals.data_ptr())
    function(logits.data_ptr(), n, V, k, *results, torch.get_num_threads())
    return values.to(dtype), ids, totals.to(dtype)
