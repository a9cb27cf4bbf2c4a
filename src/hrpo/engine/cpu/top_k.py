"""The sampler's candidates: the K likeliest tokens of each row, and what their probabilities are measured by.

On CPUs compiled code (`csrc/candidates.cpp`) reads the logits twice, as they come; PyTorch makes two copies of them.
"""

import torch
from torch import Tensor

from hrpo.engine.cpu.build import Compiled


def top_candidates(
    logits: Tensor, K: int, dtype: torch.dtype, library: Compiled | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the K largest logits of each row (n, K), their tokens (n, K), and the log of the sum of exponentials (n,).

    Args:
        logits: (n, V).
        K: how many, at most V.
        dtype: of the results.
        library: compiled code that does it where it can.

    """
    function = library and library.find("candidates", logits)
    if not function:
        logits = logits.to(dtype)
        values, ids = torch.topk(logits, K)
        return values, ids, torch.logsumexp(logits, dim=1)
    n, V = logits.shape
    logits = logits.contiguous()
    values, totals = torch.empty(n, K), torch.empty(n)
    ids = torch.empty(n, K, dtype=torch.long)
    results = (values.data_ptr(), ids.data_ptr(), totals.data_ptr())
    function(logits.data_ptr(), n, V, K, *results, torch.get_num_threads())
    return values.to(dtype), ids, totals.to(dtype)
