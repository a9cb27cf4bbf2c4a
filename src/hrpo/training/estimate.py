"""Memory that a training run will need, from the shapes of its model alone: no weights, nothing is run."""

import dataclasses
import math
from functools import cached_property
from typing import Any

import torch

from hrpo.config.schema import Auto, LatentConfig, ModelConfig, RolloutConfig, Sharding, length_limit
from hrpo.engine.checkpointing import fitting_tokens, share_to_recompute
from hrpo.engine.interface import Accelerator
from hrpo.engine.select import accelerator_for
from hrpo.latent import mode_of
from hrpo.models.context import context_of
from hrpo.training.shapes import Shape, shape_of

USABLE = 0.8  # of an accelerator's free memory
LIBRARIES = 450_000_000  # Python, torch and transformers in a process on a CPU, measured


def estimate_memory(
    lm_config: Any,
    model: ModelConfig,
    latent: LatentConfig,
    rollout: RolloutConfig,
    *,
    reference: bool,
    max_tokens_per_microbatch: int,
    gradient_checkpointing: bool | Auto,
    cpu: bool,
    memory: int = 80 * 2**30,
    processes: int = 1,
    sharding: Sharding = "none",
) -> dict[str, int]:
    """Return bytes by what they are for in each process; their sum is its estimated peak.

    Activations are counted for decoder blocks as Llama has them. What decoding needs is free again when the update
    needs its own, and that when a checkpoint is written, so that the largest of these counts. Measured peaks beside it:
    docs/performance.md.

    Args:
        lm_config: transformers' config of the model.
        model: its precision and its adapters.
        latent: what is fed while the model thinks; discrete where completions are written solutions.
        rollout: prompts are taken to have `max_prompt_tokens` (512 where it is 0) and completions `max_new_tokens`, the
            most there can be.
        reference: the loss needs one.
        max_tokens_per_microbatch: see `TrainConfig`.
        gradient_checkpointing: see `TrainConfig`.
        cpu: on a CPU weights are packed again for decoding, in float32 all but the head's. There is a compiler.
        memory: bytes of an accelerator, by which a micro-batch is chosen.
        processes: that share the groups, and the parameters where `sharding` is "fsdp".
        sharding: see `TrainConfig`.

    """
    need = _Need(
        model=model,
        latent=latent,
        rollout=rollout,
        reference=reference,
        max_tokens=max_tokens_per_microbatch,
        recompute=gradient_checkpointing,
        shape=shape_of(lm_config),
        longest=length_limit(rollout.max_new_tokens, context_of(lm_config)),
        cpu=cpu,
        memory=memory,
        processes=processes,
        shards=processes if sharding == "fsdp" else 1,
    )
    phase = max((need.update(), need.decoding(), need.saving()), key=lambda phase: sum(phase.values()))
    return {name: size for name, size in (need.always() | phase).items() if size}


@dataclasses.dataclass(frozen=True)
class _Need:
    """What a process needs, in bytes by what they are for; see `estimate_memory`.

    Args:
        model: its precision and its adapters.
        latent: what is fed while it thinks.
        rollout: how completions are sampled.
        reference: the loss needs one.
        max_tokens: of a microbatch; 0 leaves it to the device.
        recompute: keep only the inputs of blocks; auto leaves it to the device.
        shape: of the model.
        longest: tokens of a completion.
        cpu: on a CPU.
        memory: of the device, elsewhere.
        processes: how many there are.
        shards: processes that share the parameters.

    """

    model: ModelConfig
    latent: LatentConfig
    rollout: RolloutConfig
    reference: bool
    max_tokens: int
    recompute: bool | Auto
    shape: Shape
    longest: int
    cpu: bool
    memory: int
    processes: int
    shards: int

    @property
    def rank(self) -> int:
        """Of adapters; 0 where all parameters are trained."""
        return self.model.lora_rank

    @property
    def half(self) -> bool:
        """Whether numbers have two bytes."""
        return self.model.dtype == "bfloat16"

    @property
    def act(self) -> int:
        """Bytes of a number in an activation."""
        return 2 if self.half else 8 if self.model.dtype == "float64" else 4

    @property
    def stored(self) -> int:
        """Bytes of a weight of the base model."""
        return self.act if self.rank or not self.half else 4

    @property
    def packed(self) -> int:
        """Bytes of a weight that is packed again for decoding on a CPU."""
        return self.accelerator.packed_bytes(getattr(torch, self.model.dtype)) or self.act

    @property
    def adapters(self) -> int:
        """Parameters of the adapters."""
        return self.rank * (self.shape.ins + self.shape.outs)

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return (self.adapters or self.shape.total) + self.shape.gate

    @property
    def own(self) -> int:
        """Groups that a process rolls out and learns from, at most."""
        return -(-self.rollout.prompts_per_step // self.processes)

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.rollout.max_prompt_tokens or 512

    @cached_property
    def accelerator(self) -> Accelerator:
        """Which serves the device."""
        return accelerator_for(torch.device("cpu" if self.cpu else "cuda"))

    @property
    def tokens(self) -> int:
        """Of a microbatch."""
        group = self.prompt + self.rollout.group_size * self.longest
        least, most = self.accelerator.microbatch_tokens
        if not self.cpu:
            least = most = fitting_tokens(self._kept(share=0.0), self.room)
        budget = self.max_tokens or min(max(group, least), most)
        tokens = min(budget, self.own * group)
        return tokens // group * group if tokens > group else tokens  # groups are not cut where they need not be

    @cached_property
    def room(self) -> int:
        """Bytes for activations on an accelerator."""
        return round(USABLE * max(0, self.memory - sum(self.always().values()) - self.trained * 4 // self.shards))

    def always(self) -> dict[str, int]:
        """What is held all the time."""
        shape, rollout = self.shape, self.rollout
        latent = mode_of(self.latent.mode, self.latent.mixed_in).source
        stored_whole = latent == "hidden" or (latent != "none" and not rollout.top_k)
        positions = rollout.prompts_per_step * rollout.group_size * self.longest
        return {
            "weights": shape.total * self.stored // self.shards,
            "adapters and gate": (self.adapters + shape.gate) * 4 // self.shards,
            "reference": shape.total * self.stored // self.shards if not self.rank and self.reference else 0,
            "AdamW": self.trained * 8 // self.shards,
            "candidates": positions * (rollout.top_k or 20) * 8,
            "latents": positions * shape.hidden * 4 if stored_whole else 0,
            "libraries": LIBRARIES if self.cpu else 0,
        }

    def decoding(self) -> dict[str, int]:
        """What decoding needs."""
        shape, rows = self.shape, self.own * self.rollout.group_size
        if self.cpu:
            copy = (shape.in_linears + (shape.hidden * shape.vocabulary if self.half else 0)) * self.packed
        else:
            copy = shape.in_linears * self.act  # the layers, joined
        gathered = shape.total * self.stored + (self.adapters + shape.gate) * 4
        return {
            "decoding copy": copy,
            "gathered weights": gathered if self.shards > 1 else 0,
            "keys and values": 2 * shape.blocks * shape.kv * self.act * (rows * self.longest + self.own * self.prompt),
            "logits": rows * 3 * shape.vocabulary * 4,
        }

    def update(self) -> dict[str, int]:
        """What an update needs."""
        shape, tile = self.shape, self.accelerator.head_tile
        # Gathered while the update runs: what belongs to no block, with its gradients where it is trained, and two
        # blocks.
        root = shape.root + shape.gate
        running = root * (self.stored + (0 if self.rank else 4))
        running += 2 * (shape.total + shape.gate - root) // shape.blocks * self.stored
        return {
            "activations": self.tokens * self._kept(),
            "head": 2 * min(tile[0], self.tokens) * min(shape.vocabulary, tile[1]) * 4,
            "gradients": self.trained * 4 // self.shards,
            "gathered weights": running if self.shards > 1 else 0,
        }

    def saving(self) -> dict[str, int]:
        """What writing a checkpoint needs: the first process gathers AdamW's state into main memory."""
        return {"whole AdamW": self.trained * 8 if self.shards > 1 and self.cpu else 0}

    def _kept(self, share: float | None = None) -> int:
        """Return the bytes that all blocks keep for their backward pass, per token, where some are recomputed."""
        block, passed = self._block()
        recompute, blocks = self.recompute, self.shape.blocks
        if share is None and recompute != "auto":
            share = float(recompute)
        elif share is None and self.cpu:
            share = share_to_recompute(self.tokens * passed, self.shape.total * self.stored)
        elif share is None:
            share = share_to_recompute(self.tokens * block * blocks, self.room)
        again = math.ceil(share * blocks)
        return again * self.shape.hidden * self.act + (blocks - again) * block + (block if again else 0)

    def _block(self) -> tuple[int, int]:
        """Return the bytes that a block keeps for its backward pass, per token, and those that pass through all.

        With compiled operations (`TrainedBlock`), or without. Attention keeps copies where `PackedAttention` does not
        serve it. In bfloat16 norms of other blocks work in float32, and so do adapters that are not fused with their
        layers: they keep their inputs once more.
        """
        shape, act, rank = self.shape, self.act, self.rank
        D, kv, inner = shape.hidden, shape.kv, shape.inner
        plain = self.model.quantization == "none" and self.model.dtype != "float64"
        if self.cpu and rank and plain and shape.like_llama and self.packed == self.act:
            block = (4 * D + 2 * kv + 2 * inner + 7 * rank) * act
            passed = act * (shape.outs + shape.blocks * shape.heads)
        else:
            block = (6 * D + 2 * kv + 4 * inner + 7 * rank) * act
            block += 4 * (6 * D + inner) if self.half and rank and self.cpu else 0
            passed = act * (shape.outs + shape.ins)
        block += (D + 4 * kv) * act if not self.cpu or act == 8 else 0
        return block, passed
