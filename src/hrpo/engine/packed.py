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
        dtype = model.autocast or head.weight.dtype
        chosen = head_logprobs(
            hidden.to(dtype),
            head.weight.to(dtype),
            None if head.bias is None else head.bias.to(dtype),
            _at(rollout.completion_ids, layout.tokens),
            temperature=1.0 if self.policy == "model" else rollout.temperature,
            candidates=_at(rollout.support_ids, layout.tokens) if self.policy == "sampler" and rollout.top_k else None,
            kernels=self.kernels,
            tile=None if self.chunked_head else (len(layout.tokens), len(head.weight)),
        )  # (tokens,)
        none = torch.zeros_like(rollout.sample_logprobs)
        return none.flatten().index_copy(0, layout.tokens, chosen).view_as(none)

    def _inputs(self, *, reference: bool) -> Tensor:
        """Return what is fed: (S, D)."""
        model, rollout, layout = self.model, self.rollout, self.layout
        prompt_ids = _at(rollout.prompt_ids, layout.prompt_tokens)
        tokens = model.embed(torch.cat([prompt_ids, _at(rollout.completion_ids, layout.fed)]), reference=reference)
        if reference:
            return tokens
        mixed = _at(rollout.hybrid_mask, layout.fed).nonzero().squeeze(1)  # (n,), of what is fed
        if not len(mixed):
            return tokens
        at, places = layout.fed[mixed], len(prompt_ids) + mixed  # (n,) each
        share = _at(rollout.gate_mean, at).unsqueeze(1)
        out, _ = rollout.mode.feed(model.gate, tokens[places], _latents(model, rollout, at), share)
        return tokens.index_copy(0, places, out.to(tokens.dtype))

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
    """Return the latents of some places, (n,) -> (n, D); only the embeddings that occur are looked up."""
    if rollout.dense_latents is not None:
        return _at(rollout.dense_latents, at)
    ids, places = torch.unique(_at(rollout.support_ids, at), return_inverse=True)
    weights = rollout.mode.weigh(_at(rollout.support_probs, at))
    with torch.no_grad():
        table = model.embed(ids).to(weights.dtype)
    return mix_candidates(places, weights, table)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Return what stands at some places of the first two axes as one: (N, T, ...), (n,) -> (n, ...)."""
    return x.flatten(0, 1).index_select(0, places)
