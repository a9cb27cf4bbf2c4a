"""What this room needs of a hybrid model; its class stands above, in `hrpo.model`, which imports the room."""

from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class HybridModel(Protocol):
    """A language model that takes embeddings, as `hrpo.model.HybridCausalLM` does."""

    @property
    def bare_lm(self) -> Any:
        """The transformers model."""

    @property
    def embedding(self) -> Any:
        """The module that embeds tokens."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""

    @property
    def lm_dtype(self) -> torch.dtype:
        """Of its weights."""

    @property
    def autocast(self) -> torch.dtype | None:
        """What it computes in where that is not the dtype of its weights."""

    @property
    def rounding(self) -> torch.dtype:
        """The dtype whose rounding shows in the logits."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def eos_token_ids(self) -> list[int]:
        """Token ids that end a completion."""

    def to(self, device: torch.device, /) -> Self:
        """Move it."""

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which it runs."""

    def embed(self, token_ids: Tensor, /) -> Tensor:
        """(...,) -> (..., D)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Embeddings, attention mask and cache -> logits and cache."""
