"""Log-probabilities of a `Rollout` under the policy and under the reference (HRPO, arXiv:2505.18454)."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hrpo.common.errors import InputError
from hrpo.config.schema import Policy
from hrpo.data import Metrics, Rollout
from hrpo.engine.attention import laid_out, packed_attention, packed_block, run_packed
from hrpo.engine.checkpointing import recomputed_blocks
from hrpo.engine.cpu.adapters import fused_adapters
from hrpo.engine.cpu.kernels import kernels_for
from hrpo.engine.cpu.linear import OneDNN
from hrpo.engine.cpu.trained_blocks import TrainedBlock, standing_in, trained_blocks
from hrpo.engine.head import head_logprobs
from hrpo.engine.options import FAST, Techniques
from hrpo.engine.packing import PackedGroups
from hrpo.engine.packing_probe import packs_up_to
from hrpo.gate import mix_candidates
from hrpo.latent import feed, weigh
from hrpo.model import HybridCausalLM, context_text
from hrpo.models.rope import rope_limit

LINEAR = (nn.Linear, LoraLayer)


def replay(
    model: HybridCausalLM,
    rollout: Rollout,
    *,
    policy: Policy = "model",
    with_reference: bool = True,
    recompute: float = 0.0,
    techniques: Techniques = FAST,
) -> tuple[Tensor, Tensor | None]:
    """Feed a rollout again and return the log-probability of each of its tokens.

    The policy gets the same inputs as in the rollout: the latents are constants, the gates are computed anew with
    gradient. The reference is the initial model on plain tokens: the same weights with adapters and gate off, or
    the copy that `HybridCausalLM.keep_reference` took (without one, the weights as they are now). Each prompt is
    computed once for its group, with gradient.

    Args:
        model: the model that made the rollout.
        rollout: N completions.
        policy: which distribution the log-probabilities are of: "model", the unscaled logits (as released);
            "tempered", divided by the sampler's temperature (as TRL); "sampler", its top_k candidates only.
        with_reference: compute the reference too.
        recompute: share of the model's blocks (True: all) that keep only their inputs, and are computed anew in the
            backward pass.
        techniques: what makes it fast; for tests and benchmarks.

    Returns:
        (N, T) each, 0 where completion_mask is 0; the second is None without reference.

    Raises:
        ValueError: policy "sampler" for a rollout that keeps only some of the sampler's candidates.
        InputError: sequences beyond the length at which the model's position embedding changes, see `rope_limit`.

    """
    _check_length(model, rollout)
    kept = rollout.support_ids.shape[2]
    if policy == "sampler" and rollout.top_k > kept:
        raise ValueError(f"policy: sampler needs {rollout.top_k} candidates; a rollout on hidden states keeps {kept}")
    longest = rollout.prompt_ids.shape[1] + rollout.completion_ids.shape[1]
    packs = techniques.packed_groups and longest <= packs_up_to(model)
    reference = None
    path: _Packed | _Plain
    if packs:
        path = _Packed(model, rollout, policy, techniques, recompute)
    else:
        path = _Plain(model, rollout, policy, techniques)
    if with_reference:  # first: what it needs is free again before anything is kept
        with torch.no_grad():
            reference = path.logprobs(reference=True)
    return path.logprobs(reference=False), reference


def _check_length(model: HybridCausalLM, rollout: Rollout) -> None:
    limit = rope_limit(model.bare_lm.config)
    prompts = rollout.prompt_mask.sum(1).repeat_interleave(rollout.group_size)  # (N,)
    if limit and (fed := int((prompts + rollout.lengths).max()) - 1) > limit.tokens:  # the last token is not fed
        raise InputError(
            f"rollout: {fed} tokens of a sequence leave the model's {context_text(model.bare_lm.config)}; "
            "take shorter prompts or completions"
        )


def _products(techniques: Techniques) -> contextlib.AbstractContextManager[Any]:
    return OneDNN() if techniques.packed_weights else contextlib.nullcontext()


class _Plain:
    """Padded batches, and the cache of transformers for the prompts; serves every architecture."""

    def __init__(self, model: HybridCausalLM, rollout: Rollout, policy: Policy, techniques: Techniques) -> None:
        self.model, self.rollout, self.policy, self.techniques = model, rollout, policy, techniques

    def inputs(self, *, reference: bool) -> Tensor:
        """What is fed after the prompts: (N, T, D)."""
        model, rollout = self.model, self.rollout
        tokens = model.embed(rollout.completion_ids, reference=reference)
        if reference or not bool(rollout.hybrid_mask.any()):
            return tokens
        latents = rollout.latents(model.embedding_table())
        mixed, _ = feed(rollout.mode, model.gate, tokens, latents, rollout.gate_mean.unsqueeze(2))
        return torch.where(rollout.hybrid_mask.unsqueeze(2), mixed.to(tokens.dtype), tokens)

    def logprobs(self, *, reference: bool) -> Tensor:
        """(N, T)."""
        with _products(self.techniques):
            return self.compute(reference=reference)

    def compute(self, *, reference: bool) -> Tensor:
        """(N, T)."""
        model, rollout, inputs = self.model, self.rollout, self.inputs(reference=reference)
        G, T = rollout.group_size, inputs.shape[1]
        prompts = model.embed(rollout.prompt_ids, reference=reference)  # (B, P, D)
        first, cache = model(prompts, rollout.prompt_mask, last_only=True, reference=reference)  # (B, 1, V)
        parts = [self.chosen(first.repeat_interleave(G, dim=0), slice(0, 1))]
        if T > 1:  # the last token is never fed
            cache.batch_repeat_interleave(G)
            mask = torch.cat([rollout.prompt_mask.repeat_interleave(G, dim=0), rollout.completion_mask[:, :-1]], dim=1)
            logits, _ = model(inputs[:, :-1], mask, cache, reference=reference)  # (N, T - 1, V)
            parts.append(self.chosen(logits, slice(1, T)))
        return torch.cat(parts, dim=1) * rollout.completion_mask

    def chosen(self, logits: Tensor, at: slice) -> Tensor:
        """Log-probabilities of the tokens at some positions: logits (N, S, V) -> (N, S)."""
        rollout = self.rollout
        logits = logits.to(rollout.sample_logprobs.dtype)  # float32 at least
        if self.policy != "model":
            logits = logits / rollout.temperature
        chosen = logits.gather(2, rollout.completion_ids[:, at].unsqueeze(2)).squeeze(2)
        if self.policy == "sampler" and rollout.top_k:
            logits = logits.gather(2, rollout.support_ids[:, at].long())  # the sampler's candidates
        return chosen - logits.logsumexp(dim=2)


class _Packed:
    """Each group's prompt once and its completions in one row without padding; the head in parts."""

    def __init__(
        self, model: HybridCausalLM, rollout: Rollout, policy: Policy, techniques: Techniques, recompute: float
    ) -> None:
        self.model, self.rollout, self.policy = model, rollout, policy
        self.techniques, self.recompute = techniques, recompute
        self.library = kernels_for(model, techniques, "training")
        self.layout = PackedGroups(rollout.prompt_mask, rollout.completion_mask, rollout.group_size, self.library)
        self.twins: dict[nn.Module, TrainedBlock] = {}
        self.complete: set[nn.Module] = set()  # models, and blocks, whose linear layers are all run by twins
        with model.weights(reference=False) as lm:
            self.find_twins(lm, reference=False)

    def inputs(self, *, reference: bool) -> Tensor:
        """(S, D)."""
        model, rollout, fed = self.model, self.rollout, self.layout.fed
        prompt_ids = rollout.prompt_ids[rollout.prompt_mask.bool()]
        tokens = model.embed(torch.cat([prompt_ids, rollout.completion_ids[fed]]), reference=reference)
        mixed = torch.cat([torch.zeros_like(prompt_ids, dtype=torch.bool), rollout.hybrid_mask[fed]])  # (S,)
        if reference or not bool(mixed.any()):
            return tokens
        at = fed & rollout.hybrid_mask
        share = rollout.gate_mean[at].unsqueeze(1)
        out, _ = feed(rollout.mode, model.gate, tokens[mixed], _latents(model, rollout, at), share)
        return tokens.index_put((mixed,), out.to(tokens.dtype))

    @contextlib.contextmanager
    def again(self, block: nn.Module) -> Iterator[None]:
        """What holds in the forward pass, for a block that is computed anew after it."""
        with packed_block(block), laid_out(self.layout), self.fused(block, again=True):
            yield

    @contextlib.contextmanager
    def fused(self, lm: nn.Module, *, again: bool = False) -> Iterator[None]:
        """Within it, blocks that have a twin do what that does; other layers run with their adapters, and by oneDNN.

        The latter two cost something at every operation and every layer, so that they are left out where there is none.
        """
        twins = [(block, twin) for block, twin in self.twins.items() if not again or block is lm]
        with contextlib.ExitStack() as stack:
            if lm not in self.complete:
                stack.enter_context(_products(self.techniques))
                if self.fuses:
                    stack.enter_context(fused_adapters(lm))
            stack.enter_context(standing_in(twins, again=again))
            yield

    @property
    def fuses(self) -> bool:
        """Whether operations are fused; under autocast layers choose the dtype by themselves."""
        fast = self.techniques
        return fast.fused_adapters and fast.packed_weights and self.model.autocast is None

    def find_twins(self, lm: Any, *, reference: bool) -> None:
        """Note what can stand in for a model's blocks."""
        library = self.library if self.fuses else None
        with self.model.precision():
            twins = trained_blocks(lm, library, self.model.tried_blocks) if library else {}
        self.twins |= {lm.get_submodule(name): twin for name, twin in twins.items()}
        self.complete |= self.twins.keys()
        head, inside = lm.get_output_embeddings(), tuple(name + "." for name in twins)
        linear = (name for name, part in lm.named_modules() if isinstance(part, LINEAR) and part is not head)
        if twins and all(name.startswith(inside) for name in linear):
            self.complete.add(lm)
        if not reference:
            self.model.trained_blocks = list(twins)

    def blocks(self, lm: Any, *, reference: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context in which blocks keep only their inputs; nothing where there is no backward pass."""
        if reference or not self.recompute:
            return contextlib.nullcontext()
        return recomputed_blocks(lm, self.recompute, self.again)

    def logprobs(self, *, reference: bool) -> Tensor:
        """(N, T)."""
        model, rollout, layout = self.model, self.rollout, self.layout
        with _products(self.techniques):
            inputs = self.inputs(reference=reference)
        with model.weights(reference=reference) as lm:
            if lm is not model.bare_lm:
                self.find_twins(lm, reference=True)
            with model.precision(), packed_attention(lm), self.fused(lm), self.blocks(lm, reference=reference):
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
            tile=None if self.techniques.chunked_head else (int(mask.sum()), len(head.weight)),
        )  # (tokens,)
        return torch.zeros_like(rollout.sample_logprobs).masked_scatter(mask, chosen)


def _latents(model: HybridCausalLM, rollout: Rollout, at: Tensor) -> Tensor:
    """The latents of some positions, (N, T) bools -> (n, D); only the embeddings that occur are looked up."""
    if rollout.dense_latents is not None:
        return rollout.dense_latents[at]
    ids, places = torch.unique(rollout.support_ids[at], return_inverse=True)
    weights = weigh(rollout.mode, rollout.support_probs[at])
    with torch.no_grad():
        table = model.embed(ids).to(weights.dtype)
    return mix_candidates(places, weights, table)


QUANTILE_BF16 = 0.5  # nats; rounding weights to bfloat16 makes .05 to .2 of it
EXACT = 1e-3  # nats, float32: two orders of summation differ by 1e-5
MEAN_BF16 = 0.1  # nats
ROUNDINGS = 30  # times what rounding the embeddings makes: those of all layers make 0.4 to 4 times that


def broken_replay(metrics: Metrics, *, exact: bool, rounded: Metrics | None = None) -> str | None:
    """Return why an update must not be taken: what was sampled is not what is learnt from.

    Args:
        metrics: of the update, with "replay_error", the largest difference of a token's log-probability when it was
            sampled and when it was replayed, and "replay_error_mean", the mean.
        exact: the model computes in float32 or float64.
        rounded: the same of a replay beside one whose embeddings are rounded otherwise; tells a mistake in the code
            from weights so large that rounding decides.

    """
    largest, mean = metrics.get("replay_error", 0.0), metrics.get("replay_error_mean", 0.0)
    if exact and largest > EXACT:
        said = f"differ by up to {largest:.2g} from those sampled, where rounding makes {EXACT:g} at most"
        cause = _of_rounding(largest, (rounded or {}).get("replay_error", 0.0))
        cause = cause or "this is a bug of hrpo or of the model's code, please report it"
    elif not exact and mean > MEAN_BF16:
        said = f"differ by {mean:.2g} on average from those sampled, where rounding makes {MEAN_BF16:g} at most"
        cause = _of_rounding(mean, (rounded or {}).get("replay_error_mean", 0.0), ", or set model.dtype to float32")
        cause = cause or "set model.dtype to float32, and please report it"
    else:
        return None
    return f"replayed log-probabilities {said}: {cause}"


def _of_rounding(gap: float, rounded: float, also: str = "") -> str:
    """Return what to do where rounding alone explains a difference; nothing where it does not."""
    if gap > ROUNDINGS * rounded:
        return ""
    return (
        f"with these weights a rounding of the embeddings alone makes {rounded:.2g}; lower optimizer.lr, "
        f"optimizer.gate_lr and optimizer.lambda_lr{also}"
    )


def replay_errors(gaps: Tensor) -> Metrics:
    """Return the largest, the mean and the 99 % quantile of the tokens' differences: (tokens,)."""
    quantile = gaps.kthvalue(max(1, math.ceil(0.99 * len(gaps)))).values
    largest, mean, most = torch.stack([gaps.max(), gaps.mean(), quantile]).tolist()
    return {"replay_error": largest, "replay_error_mean": mean, "replay_error_99": most}
