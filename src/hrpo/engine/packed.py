"""Replay of packed groups: each group's prompt once and its completions in one row without padding."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hrpo.config.schema import Policy
from hrpo.data import Rollout
from hrpo.engine.attention import laid_out, packed_attention, packed_block, run_packed
from hrpo.engine.checkpointing import recomputed_blocks
from hrpo.engine.head import head_logprobs
from hrpo.engine.interface import TrainingKernels
from hrpo.engine.packing import PackedGroups
from hrpo.gate import mix_candidates
from hrpo.model import HybridCausalLM


class PackedReplay:
    """One rollout, fed again.

    Args:
        model: the model that made it.
        rollout: N completions, their sequences no longer than `packs_up_to`.
        policy: see `hrpo.logprobs.replay`.
        kernels: of the model.
        recompute: share of the model's blocks that keep only their inputs.
        chunked_head: head and log-softmax for some positions and a part of the vocabulary at a time.

    """

    def __init__(
        self,
        model: HybridCausalLM,
        rollout: Rollout,
        policy: Policy,
        kernels: TrainingKernels,
        recompute: float,
        *,
        chunked_head: bool,
    ) -> None:
        self.model, self.rollout, self.policy, self.kernels = model, rollout, policy, kernels
        self.recompute, self.chunked_head = recompute, chunked_head
        self.layout = PackedGroups(rollout.prompt_mask, rollout.completion_mask, rollout.group_size, kernels)

    def logprobs(self, *, reference: bool) -> Tensor:
        """Return the log-probability of each token, 0 where there is none: (N, T)."""
        model, rollout, layout = self.model, self.rollout, self.layout
        with self.kernels.products():
            inputs = self._inputs(reference=reference)
        with model.weights(reference=reference) as lm:
            with model.precision(), packed_attention(lm), self.kernels.running(lm), self._blocks(lm, reference):
                hidden = run_packed(lm, inputs, layout.positions, layout).index_select(0, layout.predicts_from)
            head = lm.get_output_embeddings()
        mask = rollout.completion_mask.bool()
        dtype = model.autocast or head.weight.dtype
        chosen = head_logprobs(
            hidden.to(dtype),
            head.weight.to(dtype),
            None if head.bias is None else head.bias.to(dtype),
            rollout.completion_ids[mask],
            temperature=1.0 if self.policy == "model" else rollout.temperature,
            candidates=rollout.support_ids[mask] if self.policy == "sampler" and rollout.top_k else None,
            kernels=self.kernels,
            tile=None if self.chunked_head else (int(mask.sum()), len(head.weight)),
        )  # (tokens,)
        return torch.zeros_like(rollout.sample_logprobs).masked_scatter(mask, chosen)

    def _inputs(self, *, reference: bool) -> Tensor:
        """Return what is fed: (S, D)."""
        model, rollout, fed = self.model, self.rollout, self.layout.fed
        prompt_ids = rollout.prompt_ids[rollout.prompt_mask.bool()]
        tokens = model.embed(torch.cat([prompt_ids, rollout.completion_ids[fed]]), reference=reference)
        mixed = torch.cat([torch.zeros_like(prompt_ids, dtype=torch.bool), rollout.hybrid_mask[fed]])  # (S,)
        if reference or not bool(mixed.any()):
            return tokens
        at = fed & rollout.hybrid_mask
        share = rollout.gate_mean[at].unsqueeze(1)
        out, _ = rollout.mode.feed(model.gate, tokens[mixed], _latents(model, rollout, at), share)
        return tokens.index_put((mixed,), out.to(tokens.dtype))

    def _blocks(self, lm: Any, reference: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context in which blocks keep only their inputs; nothing where there is no backward pass."""
        if reference or not self.recompute:
            return contextlib.nullcontext()
        return recomputed_blocks(lm, self.recompute, self._recomputing)

    @contextlib.contextmanager
    def _recomputing(self, block: nn.Module) -> Iterator[None]:
        """What holds in the forward pass, for a block that is computed again after it."""
        with packed_block(block), laid_out(self.layout), self.kernels.recomputing(block):
            yield


def _latents(model: HybridCausalLM, rollout: Rollout, at: Tensor) -> Tensor:
    """The latents of some positions, (N, T) bools -> (n, D); only the embeddings that occur are looked up."""
    if rollout.dense_latents is not None:
        return rollout.dense_latents[at]
    ids, places = torch.unique(rollout.support_ids[at], return_inverse=True)
    weights = rollout.mode.weigh(rollout.support_probs[at])
    with torch.no_grad():
        table = model.embed(ids).to(weights.dtype)
    return mix_candidates(places, weights, table)
