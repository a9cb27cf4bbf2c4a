"""Blocks that keep only their input, and compute what is inside anew in the backward pass: less memory, more time."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Context = Callable[[nn.Module], AbstractContextManager[Any]]
LEAST_KEPT = 256_000_000  # bytes of activations that are kept in any case
MICROBATCH = (2048, 16384)  # tokens on an accelerator: fewer leave it idle, more are no faster


class _Recomputed(nn.Module):
    def __init__(self, block: nn.Module, context: Context) -> None:
        super().__init__()
        self.block, self.context = block, context

    def __getattr__(self, name: str) -> Any:
        """Models look at their blocks, for the kind of attention for instance."""
        own = vars(self)["_modules"]
        return own[name] if name in own else getattr(own["block"], name)

    def forward(self, *args: Any, **options: Any) -> Any:
        contexts = (contextlib.nullcontext(), self.context(self.block))
        return checkpoint(
            self.block,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # there is no dropout: the model stays in evaluation mode
            context_fn=lambda: contexts,
            **options,
        )


@contextlib.contextmanager
def recomputed_blocks(lm: Any, share: float, context: Context) -> Iterator[None]:
    """Within it, a transformers model runs its first blocks so; a model without marked blocks runs as it is.

    Args:
        lm: the model.
        share: of its blocks, rounded up.
        context: what has to hold while a block is computed anew, outside of this context; called with the block.

    """
    blocks = _blocks(lm)
    chosen = blocks[: math.ceil(share * len(blocks))]
    for name, block in chosen:
        lm.set_submodule(name, _Recomputed(block, context))
    try:
        yield
    finally:
        for name, block in chosen:
            lm.set_submodule(name, block)


def fitting_tokens(per_token: int, room: int) -> int:
    """Return the most tokens of a micro-batch, a power of two, whose activations stay within the room.

    Args:
        per_token: bytes that all blocks keep of one.
        room: bytes. Where it is too small for the fewest tokens, blocks have to be computed anew.

    """
    tokens = MICROBATCH[1]
    while tokens > MICROBATCH[0] and tokens * per_token > room:
        tokens //= 2
    return tokens


def share_to_recompute(kept: int, weights: int) -> float:
    """Return the share of blocks to compute anew, so that the others keep no more bytes than the weights have.

    256 MB are kept in any case.

    Args:
        kept: bytes that all blocks would keep, see `kept_bytes`.
        weights: bytes of the model.

    """
    most = max(LEAST_KEPT, weights)
    return 1 - most / max(most, kept)


def kept_bytes(lm: Any, tokens: int, dtype: torch.dtype, replacements: Collection[str] = ()) -> int:
    """Return about what the blocks keep of so many tokens, computed in `dtype`: what linear layers read and write.

    What else is kept, for SmolLM2-135M and sequences of 200 tokens: a twentieth more in float32 and a twelfth in
    bfloat16 where a `TrainedBlock` stands in for each block; without compiled code a seventh and a quarter, and in
    bfloat16 as much as this where adapters are not fused.

    Args:
        lm: the model.
        tokens: how many.
        dtype: of activations.
        replacements: names of blocks that a `TrainedBlock` stands in for, which keeps, of what linear layers read, the
            input of attention's last one alone.

    """
    features = 0
    for name, block in _blocks(lm):
        for part, layer in block.named_modules():
            if isinstance(layer, nn.Linear) and ".lora_" not in part:
                read = name not in replacements or "o_proj" in part
                features += layer.out_features + (layer.in_features if read else 0)
    return tokens * dtype.itemsize * features


def _blocks(lm: Any) -> list[tuple[str, nn.Module]]:
    return [(name, block) for name, block in lm.named_modules() if isinstance(block, GradientCheckpointingLayer)]
