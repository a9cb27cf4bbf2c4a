"""Parameters sharded over the processes by torch's `fully_shard`: the update runs on shards, the rollout on a copy.

Decoding reads each weight once a token: gathered for each of them, they would cost more than all the rest, and keep
processes in step that finish at different times. So the weights are gathered once for a rollout, into a copy that is
dropped before the update; that, an evaluation and a checkpoint are the only moments when a process holds all of them.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from hrpo.common.distributed import full
from hrpo.common.per_model import remember_as
from hrpo.data import Rollout
from hrpo.logprobs import replay
from hrpo.model import HybridCausalLM

T = TypeVar("T")


class Sharded(nn.Module):
    """A model, and its reference where that is a copy, sharded: each block by itself, all else together.

    Called with a function it gathers what belongs to no block (embedding, head, gate), runs the function, and keeps
    that until the backward pass has ended; blocks are gathered when they run, and again when gradients pass through.

    Args:
        model: the same in all processes, with its reference; its parameters become DTensors. What is tried once on a
            model must have been.
        processes: how many there are.

    """

    def __init__(self, model: HybridCausalLM, processes: int) -> None:
        super().__init__()
        # The model's structure without its weights, from which copies are made: sharded modules have none.
        blanks = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
        kept: dict[int, Any] = {id(b): b for b in model.buffers()} | {id(model.tokenizer): model.tokenizer}
        self.blank = [copy.deepcopy(model, blanks | kept | {id(model._reference): []})]  # in a list: no part of this
        self.model, self.references = model, nn.ModuleList(model._reference)
        self.model.embedding.register_forward_hook(_with_gradient)
        mesh = init_device_mesh(model.device.type, (processes,))
        for block in [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]:
            fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(self, compute: Callable[[], T]) -> T:
        """Run a function; gradients may pass through the tensors that it returns."""
        return compute()

    def replay(self, rollout: Rollout, **options: Any) -> tuple[Tensor, Tensor | None]:
        """Feed a rollout again, see `hrpo.logprobs`; all processes have to, equally often."""

        def compute() -> tuple[Tensor, Tensor | None]:
            logprobs, reference = replay(self.model, rollout, **options)
            # Where nothing was mixed the gate has a gradient all the same, of zero: it is added to those of the others.
            return logprobs + 0 * sum(p.sum() for p in self.model.gate.parameters()), reference

        out: tuple[Tensor, Tensor | None] = self(compute)
        return out

    @torch.no_grad()
    def unsharded_model(self) -> HybridCausalLM:
        """Return a copy of the model with all of its weights, which all processes have to ask for."""
        (blank,) = self.blank
        weights = dict(self.model.named_parameters())
        replacements: dict[int, Any] = {id(b): b for b in blank.buffers()} | {id(blank.tokenizer): blank.tokenizer}
        for name, p in blank.named_parameters():
            replacements[id(p)] = nn.Parameter(full(weights[name].detach()), p.requires_grad)
        whole = copy.deepcopy(blank, replacements)
        whole.settings = self.model.settings
        remember_as(whole, self.model)
        return whole


def _with_gradient(_: nn.Module, inputs: Any, embeds: Tensor) -> Tensor:
    """Let gradients pass through all blocks, where nothing is mixed and embeddings are frozen too.

    Else the first block's gradients are added up at another time than in a process where something is mixed.
    """
    return embeds.requires_grad_() if torch.is_grad_enabled() else embeds
