"""Whether a block is laid out as Llama's are: tried beside a replacement, instead of kept as a list of names.

Norm, attention with rotary embeddings, norm, SwiGLU, each half added to what came in: so are the blocks of Llama,
Mistral, Qwen, SmolLM and others.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from hrpo.engine.attention import Layout, laid_out, packed_block

FAILURES_RAISE = False  # whether a failure of our own code ends the program, as it does in tests
# Largest difference from the model's own block, over 1: they sum in another order. In bfloat16, a few of its steps.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2**-5}
log = logging.getLogger("hrpo")


class NotLikeLlamaError(Exception):
    """A block is laid out in another way."""


class _Mix(Layout):
    """Attention of a trial: no attention, but all that goes in shows in what comes out."""

    longest = 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Layout`."""
        mixed = (key * key + value).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return query * (scale + layer / 64) + mixed


@torch.no_grad()
def alike(block: Any, replacement: Any, rotary: Any) -> bool:
    """Whether a block and its replacement give the same for a few tokens.

    Args:
        block: of a transformers model.
        replacement: called as the block is; has its `dtype`, its `width` D, and `d` of a head.
        rotary: the model's rotary embeddings.

    """
    dtype, D, device = replacement.dtype, replacement.width, next(block.parameters()).device
    x = torch.sin(torch.arange(3.0 * D) * 1.7).view(1, 3, D).to(device, dtype)
    try:
        embeddings = rotary(x, torch.tensor([[0, 7, 40]], device=device))
        if not all(part.shape == (1, 3, replacement.d) and part.dtype == dtype for part in embeddings):
            return False
        with packed_block(block), laid_out(_Mix()):
            expected = block(x, attention_mask=None, position_embeddings=embeddings)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # of somebody's block
        return False
    try:
        with packed_block(block), laid_out(_Mix()):
            found = replacement(x, position_embeddings=embeddings)
    except Exception:  # of ours, which is a bug: the model's own block does the same
        if FAILURES_RAISE:
            raise
        log.exception("%s: our own code failed on its blocks, which run as they are; please report it", type(block))
        return False
    return bool(((found - expected).abs() <= TOLERANCE[dtype] * (1 + expected.abs())).all())
