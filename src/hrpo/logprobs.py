"""Log-probabilities of a `Rollout` under the policy and under the reference (HRPO, arXiv:2505.18454)."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hrpo.common.errors import InputError
from hrpo.common.metrics import LOGP_GAP
from hrpo.config.schema import Policy
from hrpo.data import Metrics, Rollout
from hrpo.engine.interface import DEFAULT, EngineOptions, TrainingKernels
from hrpo.engine.packed import PackedReplay
from hrpo.engine.packing_probe import packs_up_to
from hrpo.engine.select import accelerator_for
from hrpo.model import HybridCausalLM
from hrpo.models.context import context_text, rope_limit


def replay(
    model: HybridCausalLM,
    rollout: Rollout,
    *,
    policy: Policy = "model",
    with_reference: bool = True,
    recompute: float = 0.0,
    options: EngineOptions = DEFAULT,
    techniques: EngineOptions | None = None,
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
        options: of the engine; for tests and benchmarks.
        techniques: the name of `options` in 0.1, for this version.

    Returns:
        (N, T) each, 0 where completion_mask is 0; the second is None without reference.

    Raises:
        ValueError: policy "sampler" for a rollout that keeps only some of the sampler's candidates.
        InputError: sequences beyond the length at which the model's position embedding changes, see `rope_limit`.

    """
    options = techniques or options
    _check_length(model, rollout)
    kept = rollout.support_ids.shape[2]
    if policy == "sampler" and rollout.top_k > kept:
        raise ValueError(f"policy: sampler needs {rollout.top_k} candidates; a rollout on hidden states keeps {kept}")
    longest = rollout.prompt_ids.shape[1] + rollout.completion_ids.shape[1]
    kernels = accelerator_for(model.device, options).training(model, options)
    path: PackedReplay | _PlainReplay
    if options.packed and longest <= packs_up_to(model):
        path = PackedReplay(model, rollout, policy, kernels, recompute, chunked_head=options.chunked_head)
    else:
        path = _PlainReplay(model, rollout, policy, kernels)
    reference = None
    if with_reference:  # first: what it needs is free again before anything is kept
        with torch.no_grad():
            reference = path.logprobs(reference=True)
    return path.logprobs(reference=False), reference


def _check_length(model: HybridCausalLM, rollout: Rollout) -> None:
    limit = rope_limit(model.bare_lm.config)
    prompts = rollout.prompt_mask.sum(1).repeat_interleave(rollout.group_size)  # (N,)
    if limit and (fed := int((prompts + rollout.lengths).max()) - 1) > limit.tokens:  # the last token is not fed
        raise InputError(
            "rollout",
            f"{fed} tokens of a sequence leave the model's {context_text(model.bare_lm.config)}",
            "take shorter prompts or completions",
        )


class _PlainReplay:
    """Padded batches, and the cache of transformers for the prompts; serves every architecture."""

    def __init__(self, model: HybridCausalLM, rollout: Rollout, policy: Policy, kernels: TrainingKernels) -> None:
        self.model, self.rollout, self.policy, self.kernels = model, rollout, policy, kernels

    def inputs(self, *, reference: bool) -> Tensor:
        """What is fed after the prompts: (N, T, D)."""
        model, rollout = self.model, self.rollout
        tokens = model.embed(rollout.completion_ids, reference=reference)
        if reference or not bool(rollout.hybrid_mask.any()):
            return tokens
        latents = rollout.latents(model.embedding_table())
        mixed, _ = rollout.mode.feed(model.gate, tokens, latents, rollout.gate_mean.unsqueeze(2))
        return torch.where(rollout.hybrid_mask.unsqueeze(2), mixed.to(tokens.dtype), tokens)

    def logprobs(self, *, reference: bool) -> Tensor:
        """(N, T)."""
        with self.kernels.products():
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


QUANTILE_BF16 = 0.5  # nats; rounding weights to bfloat16 makes .05 to .2 of it
EXACT = 1e-3  # nats, float32: two orders of summation differ by 1e-5
MEAN_BF16 = 0.1  # nats
ROUNDINGS = 30  # times what rounding the embeddings makes: those of all layers make 0.4 to 4 times that


def broken_replay(metrics: Metrics, *, exact: bool, rounded: Metrics | None = None) -> str | None:
    """Return why an update must not be taken: what was sampled is not what is learnt from.

    Args:
        metrics: of the update, with the largest difference of a token's log-probability when it was sampled and when
            it was replayed, and the mean of these differences; see `replay_errors`.
        exact: the model computes in float32 or float64.
        rounded: the same of a replay beside one whose embeddings are rounded otherwise; tells a mistake in the code
            from weights so large that rounding decides.

    """
    largest, mean = metrics.get(f"{LOGP_GAP}/max", 0.0), metrics.get(f"{LOGP_GAP}/mean", 0.0)
    if exact and largest > EXACT:
        said = f"differ by up to {largest:.2g} from those sampled, where rounding makes {EXACT:g} at most"
        cause = _of_rounding(largest, (rounded or {}).get(f"{LOGP_GAP}/max", 0.0))
        cause = cause or "this is a bug of hrpo or of the model's code, please report it"
    elif not exact and mean > MEAN_BF16:
        said = f"differ by {mean:.2g} on average from those sampled, where rounding makes {MEAN_BF16:g} at most"
        cause = _of_rounding(mean, (rounded or {}).get(f"{LOGP_GAP}/mean", 0.0), ", or set model.dtype to float32")
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
    return {f"{LOGP_GAP}/max": largest, f"{LOGP_GAP}/mean": mean, f"{LOGP_GAP}/p99": most}


@contextlib.contextmanager
def rounded_embeddings(model: HybridCausalLM) -> Iterator[None]:
    """Within it, each number of a token's embedding is another by one rounding."""
    step = torch.finfo(model.rounding).eps
    handle = model.embedding.register_forward_hook(lambda module, inputs, e: e + step * e.abs())
    try:
        yield
    finally:
        handle.remove()
