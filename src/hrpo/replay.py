"""Log-probabilities of a `Rollout` under the policy and under the reference (HRPO, arXiv:2505.18454)."""

import torch
from torch import Tensor

from hrpo.config import Policy
from hrpo.model import HybridCausalLM
from hrpo.rollout import Rollout


def replay(
    model: HybridCausalLM, rollout: Rollout, *, policy: Policy = "model", with_reference: bool = True
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

    Returns:
        (N, T) each, 0 where completion_mask is 0; the second is None without reference.

    """
    tokens = model.embed(rollout.completion_ids)  # (N, T, D)
    inputs = tokens
    if bool(rollout.hybrid_mask.any()):
        mixed, _ = model.gate(tokens, rollout.latents(model.embedding_table()))
        inputs = torch.where(rollout.hybrid_mask.unsqueeze(2), mixed.to(tokens.dtype), tokens)
    logprobs = _logprobs(model, rollout, inputs, policy, reference=False)
    if not with_reference:
        return logprobs, None
    with torch.no_grad():
        tokens = model.embed(rollout.completion_ids, reference=True)
        return logprobs, _logprobs(model, rollout, tokens, policy, reference=True)


def _logprobs(model: HybridCausalLM, rollout: Rollout, inputs: Tensor, policy: Policy, *, reference: bool) -> Tensor:
    G, T = rollout.group_size, inputs.shape[1]
    prompts = model.embed(rollout.prompt_ids, reference=reference)  # (B, P, D)
    first, cache = model(prompts, rollout.prompt_mask, last_only=True, reference=reference)  # (B, 1, V)
    parts = [_token_logprobs(first.repeat_interleave(G, dim=0), rollout, slice(0, 1), policy)]
    if T > 1:  # the last token is never fed
        cache.batch_repeat_interleave(G)
        mask = torch.cat([rollout.prompt_mask.repeat_interleave(G, dim=0), rollout.completion_mask[:, :-1]], dim=1)
        logits, _ = model(inputs[:, :-1], mask, cache, reference=reference)  # (N, T - 1, V)
        parts.append(_token_logprobs(logits, rollout, slice(1, T), policy))
    return torch.cat(parts, dim=1) * rollout.completion_mask


def _token_logprobs(logits: Tensor, rollout: Rollout, at: slice, policy: Policy) -> Tensor:
    """Log-probabilities of the tokens at some positions: logits (N, S, V) -> (N, S)."""
    logits = logits.to(rollout.sample_logprobs.dtype)  # float32 at least
    if policy != "model":
        logits = logits / rollout.temperature
    chosen = logits.gather(2, rollout.completion_ids[:, at].unsqueeze(2)).squeeze(2)
    if policy == "sampler" and rollout.top_k:
        logits = logits.gather(2, rollout.support_ids[:, at].long())  # the sampler's candidates
    return chosen - logits.logsumexp(dim=2)
