"""What the engine asks of the device that it runs on: an `Accelerator`, which here is PyTorch alone.

PyTorch's own operations are the reference and serve every device. A room of kernels such as `engine/cpu` overrides what
it does faster, and gives the same numbers.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrpo.engine.inference_model import inference_model
from hrpo.engine.kv import KVLayout
from hrpo.gate import HybridGate
from hrpo.model import HybridCausalLM


@dataclass(frozen=True)
class EngineOptions:
    """How the engine computes. All of it is exact: whatever is chosen, the numbers are the same.

    Args:
        packed: run sequences without padding, a group's prompt once and attended to as shared, keys and values
            written in place. Off: the padded batches and the cache of transformers.
        compact: drop finished rows from the batch, and take waiting prompts into the free rows.
        folded_adapter: decode with the adapter added to the weights of a copy (never in bfloat16, which would round
            small updates away).
        chunked_head: head and log-softmax for some completion positions and a part of the vocabulary at a time (needs
            packed).
        static_shapes: decode with steps that are all alike, over the full length and without dropping rows (so
            compact does nothing), and on CUDA capture one as a graph to repeat (needs packed).
        accelerator: a name of `hrpo.engine.select.ACCELERATORS`, or one of your own; "auto" takes the first that
            serves the model's device.

    """

    packed: bool = True
    compact: bool = True
    folded_adapter: bool = True
    chunked_head: bool = True
    static_shapes: bool = False
    accelerator: "str | Accelerator" = "auto"


HEAD_TILE = (512, 32768)  # positions and tokens of the vocabulary that the head takes at a time


class DecodingKernels:
    """How one model decodes.

    Args:
        model: its weights must not change while this is used.
        options: of the engine.

    """

    def __init__(self, model: HybridCausalLM, options: EngineOptions) -> None:
        self.model, self.options = model, options

    def inference_model(self) -> Any:
        """Return a copy of the bare language model that computes the same, faster and without gradient."""
        return inference_model(self.model, fold=self.options.folded_adapter)

    def gate(self) -> HybridGate:
        """Return a gate that computes the same as the model's, without gradient."""
        return self.model.gate

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kv: KVLayout, scale: float) -> Tensor | None:
        """Write each row's key and value where they belong, and attend; None, and nothing written: not served.

        Args:
            query: (n, H, d).
            key: (n, H_kv, d).
            value: (n, H_kv, d_v).
            kv: where they belong.
            scale: of the scores.

        Returns:
            (n, H, d_v).

        """
        return None

    def top_k(self, logits: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k largest logits of each row, their tokens, and the log of the sum of all exponentials.

        Args:
            logits: (n, V).
            k: at most V.
            dtype: of the results.

        Returns:
            (n, k), (n, k) and (n,).

        """
        logits = logits.to(dtype)
        values, ids = torch.topk(logits, k)
        return values, ids, torch.logsumexp(logits, dim=1)

    def mix(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of candidates' embeddings: (n, K), (n, K) -> (n, D)."""
        return self.model.mix(ids, weights)


class TrainingKernels:
    """How one model is replayed, forward and backward."""

    head_tile = HEAD_TILE
    linear = staticmethod(F.linear)  # products of the head

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, sequences: Tensor, group_size: int, scale: float
    ) -> Tensor | None:
        """Attend in packed groups, with gradient; None: not served.

        Args:
            query: (S, H, d).
            key: (S, H_kv, d).
            value: (S, H_kv, d_v).
            sequences: (B * (1 + G), 4), see `PackedGroups`.
            group_size: G.
            scale: of the scores.

        Returns:
            (S, H, d_v).

        """
        return None

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which products of linear layers are fastest."""
        return contextlib.nullcontext()

    def running(self, lm: Any) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which a packed forward pass of the language model is fastest."""
        return contextlib.nullcontext()

    def recomputing(self, block: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which one of its blocks is computed again in the backward pass."""
        return contextlib.nullcontext()


class Accelerator:
    """PyTorch alone."""

    head_tile = HEAD_TILE
    microbatch_tokens = (16384, 16384)  # of a micro-batch where nothing is said: least and most
    look_every = 16  # decode steps between looks at what has finished: each look waits for the device

    def serves(self, device: torch.device) -> bool:
        """Whether it is for this device."""
        return True

    def decoding(self, model: HybridCausalLM, options: EngineOptions) -> DecodingKernels:
        """Return how a model decodes."""
        return DecodingKernels(model, options)

    def training(self, model: HybridCausalLM, options: EngineOptions) -> TrainingKernels:
        """Return how a model is replayed."""
        return TrainingKernels()

    def packed_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of a weight of this dtype in a copy that decodes; 0 where it is shared with the model."""
        return 0

    def checkpointing_share(self, model: HybridCausalLM, tokens: int) -> float:
        """Return the share of blocks to recompute in the backward pass of so many tokens where nothing is said."""
        return 0.0

    def configure_memory(self, *, sharded: bool) -> None:
        """Prepare the allocator for a training, with sharded parameters or whole ones."""

    def release_memory(self) -> None:
        """Hand back what is free."""

    def settle_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move gradients, which stay, out of the way of what comes and goes with each micro-batch."""


DEFAULT = EngineOptions()
REFERENCE = EngineOptions(
    packed=False, compact=False, folded_adapter=False, chunked_head=False, accelerator="torch"
)  # the model as transformers runs it
FAST, PLAIN = DEFAULT, REFERENCE  # their names in 0.1
