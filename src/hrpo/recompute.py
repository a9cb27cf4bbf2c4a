"""Blocks that keep only their input, and compute what is inside anew in the backward pass: less memory, more time."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Context = Callable[[], AbstractContextManager[Any]]


class _Recomputed(nn.Module):
    def __init__(self, block: nn.Module, context: Context) -> None:
        super().__init__()
        self.block, self.context = block, context

    def __getattr__(self, name: str) -> Any:
        """Models look at their blocks, for the kind of attention for instance."""
        own = vars(self)["_modules"]
        return own[name] if name in own else getattr(own["block"], name)

    def forward(self, *args: Any, **options: Any) -> Any:
        contexts = (contextlib.nullcontext(), self.context())
        return checkpoint(
            self.block,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # there is no dropout: the model stays in evaluation mode
            context_fn=lambda: contexts,
            **options,
        )


@contextlib.contextmanager
def recomputed_blocks(lm: Any, context: Context) -> Iterator[None]:
    """Within it, a transformers model runs its blocks so; a model without marked blocks runs as it is.

    Args:
        lm: the model.
        context: what has to hold while a block is computed anew, outside of this context.

    """
    blocks = [(name, block) for name, block in lm.named_modules() if isinstance(block, GradientCheckpointingLayer)]
    for name, block in blocks:
        lm.set_submodule(name, _Recomputed(block, context))
    try:
        yield
    finally:
        for name, block in blocks:
            lm.set_submodule(name, block)
