"""What the engine asks of the device that it runs on: an `Accelerator`, which here is PyTorch alone.

PyTorch's own operations are the reference and serve every device. A room of kernels such as `engine/cpu` overrides what
it does faster, and gives the same numbers.
"""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrpo.engine.inference_model import inference_model
from hrpo.engine.kv import KVLayout
from hrpo.engine.spans import Packing
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
        static_shapes: decode in few different steps, which a device may capture and repeat, see `StaticDecoder` (needs
            packed); None: where the device does.
        torch_compile: compile such steps by `torch.compile`, which fuses small operations and takes minutes at first.
        accelerator: a name of `hrpo.engine.select.ACCELERATORS`, or one of your own; "auto" takes the first that
            serves the model's device.

    """

    packed: bool = True
    compact: bool = True
    folded_adapter: bool = True
    chunked_head: bool = True
    static_shapes: bool | None = None
    torch_compile: bool = False
    accelerator: "str | Accelerator" = "auto"


HEAD_TILE = (512, 32768)  # positions and tokens of the vocabulary that the head takes at a time


State = dict[str, Tensor]  # of the n rows of a batch, by name


def at_least_float32(x: Tensor) -> torch.dtype:
    """Return the dtype of x, or float32 where that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attend causally, or where a mask is true: (n, H, S, d), (n, H_kv, s, d), (n, H_kv, s, d_v) -> (n, H, S, d_v)."""
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )


class DecodingKernels:
    """How one model decodes.

    Args:
        model: its weights must not change while this is used.
        options: of the engine.

    """

    sdpa = staticmethod(sdpa)  # attention of prompts

    def __init__(self, model: HybridCausalLM, options: EngineOptions) -> None:
        self.model, self.options = model, options
        self.static = bool(options.static_shapes)
        self.kept: dict[Hashable, Any] = {}  # from one batch to the next, where steps are repeated

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor with these numbers for `repeat`: where it repeats, the one of this name and shape."""
        return tensor

    def forget_steps(self) -> None:
        """Forget what was captured: what it wrote to has gone."""

    def repeat(self, step: Callable[[State], State], state: State, key: Hashable) -> State:
        """Do a decode step, or repeat one that was captured.

        Args:
            step: what it computes; it reads no tensors but those of the state, of the decoder and from `keep`, and
                changes nothing when it is done again.
            state: of the rows.
            key: what its operations depend on, beside `keep`; None: they cannot be repeated.

        """
        return step(state)

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

    def scores(self, query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """Return scaled scores with a bias added, float32 at least: (m, q, d), (m, d, t), (m, 1, t) -> (m, q, t).

        Keys with large biases, as Qwen2 has, give scores of hundreds, which bfloat16 would round to whole numbers.
        """
        wide = at_least_float32(query)
        with torch.autocast(query.device.type, enabled=False):
            query, keys = query.to(wide) * scale, keys.to(wide)
            return torch.bmm(query, keys) if bias is None else torch.baddbmm(bias, query, keys)

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
    sdpa = staticmethod(sdpa)  # attention of padded sequences, where `attend` does not serve

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor | None:
        """Attend in packed groups, with gradient; None: not served.

        Args:
            query: (S, H, d).
            key: (S, H_kv, d).
            value: (S, H_kv, d_v).
            packing: of the groups.
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
    microbatch_tokens = (16384, 16384)  # least and most of a micro-batch, see `microbatch`
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

    def microbatch(self, model: HybridCausalLM) -> tuple[int, int]:
        """Return the least and the most tokens of a micro-batch where nothing is said."""
        return self.microbatch_tokens

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
