"""The mean of candidates' embeddings as one call of compiled code (`csrc/mix.cpp`), for tables in bfloat16."""

import torch
from torch import Tensor

from hrpo.engine.cpu.build import Compiled


def mix_compiled(library: Compiled, ids: Tensor, weights: Tensor, table: Tensor) -> Tensor | None:
    """Return the weighted sum of embeddings; None where the library does not serve this.

    Args:
        library: has the code.
        ids: (n, K) candidates.
        weights: (n, K) in float32.
        table: (V, D).

    Returns:
        (n, D) in float32.

    """
    function = library.find("mix", table) if weights.dtype == torch.float32 else None
    if not function or not table.is_contiguous() or int(ids.max()) >= len(table):
        return None
    ids, weights = ids.long().contiguous(), weights.contiguous()
    out = weights.new_empty(len(weights), table.shape[1])
    places = (x.data_ptr() for x in (ids, weights, table, out))
    function(*places, *weights.shape, out.shape[1], torch.get_num_threads())
    return out
