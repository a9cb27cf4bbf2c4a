"""Hybrid decoding: prompts in, a `Rollout` out (HRPO, arXiv:2505.18454)."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrpo.config import LatentMode
from hrpo.delimiter import delimiter_automaton
from hrpo.gate import latent_embedding
from hrpo.model import HybridCausalLM

SHOWN_CANDIDATES = 20  # kept for display where the latent itself is stored


@dataclass(frozen=True)
class Rollout:
    """Completions of B prompts, group_size each: N = B * group_size rows, a prompt's side by side.

    prompt_ids, prompt_mask: (B, P), padded on the left.
    completion_ids: (N, T), padded on the right.
    completion_mask: (N, T), 1 up to and including EOS.
    hybrid_mask: (N, T), True where a mixed input was fed; never at EOS and at the last position, which are not fed.
    sample_logprobs: (N, T), log-softmax of the unscaled logits at the sampled token.
    support_ids: (N, T, K) int32, the sampler's candidates, the likeliest first.
    support_probs: (N, T, K), their probabilities.
    gate_mean: (N, T), mean of a over channels where a mixed input was fed, 1 elsewhere.
    temperature, top_k: the sampler's; top_k is 0 where all of V were candidates.
    dense_latents: (N, T, D), stored instead of the candidates when all of V is mixed.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    hybrid_mask: Tensor
    sample_logprobs: Tensor
    support_ids: Tensor
    support_probs: Tensor
    gate_mean: Tensor
    group_size: int
    temperature: float
    top_k: int
    dense_latents: Tensor | None = None

    def __len__(self) -> int:
        """N."""
        return self.completion_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, EOS included: (N,)."""
        return self.completion_mask.sum(dim=1)

    def truncated(self, eos_token_ids: Sequence[int]) -> Tensor:
        """Whether a completion was cut off at the length limit: (N,) bools."""
        last = self.completion_ids.gather(1, (self.lengths - 1).unsqueeze(1)).squeeze(1)
        return ~torch.isin(last, last.new_tensor(list(eos_token_ids)))

    def latents(self, embedding_table: Tensor) -> Tensor:
        """Return the latent h of every position: (V, D) -> (N, T, D), no gradient."""
        if self.dense_latents is not None:
            return self.dense_latents
        return mix_candidates(self.support_ids, self.support_probs, embedding_table)

    def hidden_ratio(self) -> Tensor:
        """Hidden ratio sqrt(1 - gate_mean^2), averaged over mixed positions; 0 where there are none. Scalar."""
        ratio = torch.sqrt(1 - self.gate_mean**2)
        return (ratio * self.hybrid_mask).sum() / self.hybrid_mask.sum().clamp(min=1)

    def select(self, first: int, last: int) -> "Rollout":
        """Return rows `first` to `last` (exclusive), trimmed to their longest prompt and completion."""
        G = self.group_size
        if first % G == 0 and last % G == 0:
            prompts, group_size = torch.arange(first // G, last // G), G
        else:  # parts of a group: each row brings its own prompt
            prompts, group_size = torch.arange(first, last) // G, 1
        prompt_mask = self.prompt_mask[prompts]
        P = int(prompt_mask.sum(dim=1).max())
        T = int(self.lengths[first:last].max())
        rows: dict[str, Any] = {
            name: value[first:last, :T]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and not name.startswith("prompt_")
        }
        return replace(
            self,
            prompt_ids=self.prompt_ids[prompts][:, -P:],
            prompt_mask=prompt_mask[:, -P:],
            group_size=group_size,
            **rows,
        )

    def micro_batches(self, token_budget: int) -> Iterator[tuple[int, int]]:
        """Yield row ranges whose padded tokens stay within a budget: whole groups, or rows of one where it must be.

        A group costs its prompt once and its completions; a part of a group costs the prompt for each row. At
        least one row is taken, however long.
        """
        N, G, T = len(self), self.group_size, self.completion_ids.shape[1]
        P = self.prompt_ids.shape[1]
        groups = token_budget // (P + G * T)
        size = groups * G if groups else max(1, token_budget // (P + T))
        first = 0
        while first < N:
            last = min(first + size, N)
            if not groups:  # do not reach into the next group
                last = min(last, (first // G + 1) * G)
            yield first, last
            first = last


def mix_candidates(ids: Tensor, probs: Tensor, embedding_table: Tensor, chunk: int = 1024) -> Tensor:
    """Return `latent_embedding` of a distribution given by its K candidates, without a row of V.

    Args:
        ids: (..., K) candidates.
        probs: (..., K) their probabilities.
        embedding_table: (V, D).
        chunk: positions at a time, to bound the (chunk, K, D) in between.

    Returns:
        (..., D) in the dtype of `probs`.

    """
    flat_ids, flat_probs = ids.flatten(0, -2).long(), probs.flatten(0, -2)
    norms = flat_probs.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # 0 only where nothing was sampled
    weights = (flat_probs / norms).unsqueeze(1)  # (n, 1, K)
    out = flat_probs.new_empty(flat_ids.shape[0], embedding_table.shape[1])
    for at in range(0, flat_ids.shape[0], chunk):
        rows = slice(at, at + chunk)
        out[rows] = torch.bmm(weights[rows], embedding_table[flat_ids[rows]].to(probs.dtype)).squeeze(1)
    return out.view(*ids.shape[:-1], -1)


def sample_key(*parts: int | str) -> int:
    """Return a stable 63-bit key of what a completion is: seed, prompt, sample and whatever else sets it apart."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (B, P) each, of rows of token ids."""
    P = max(map(len, rows))
    ids = torch.tensor([[pad] * (P - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (P - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@torch.no_grad()
def generate(
    model: HybridCausalLM,
    prompt_ids: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int | None = None,
    temperature: float = 0.5,
    top_k: int = 50,
    greedy: bool = False,
    seed: int = 0,
    sample_keys: Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    delimiter: str | Sequence[int] = "####",
    tokenizer: Any = None,
    latent_mode: LatentMode | None = None,
    forced_ids: Tensor | None = None,
    compact: bool = True,
) -> Rollout:
    """Complete prompts, feeding each sampled token mixed with its latent until the delimiter has appeared.

    Args:
        model: the language model and its gate.
        prompt_ids: B lists of token ids, none empty.
        group_size: completions per prompt, G. A prompt is computed once for all of them.
        max_new_tokens: length limit T; with `forced_ids` their length.
        temperature: tau, above 0 (greedy decoding too: the latent is made from the tempered distribution).
        top_k: candidates kept, at most V; 0 keeps all.
        greedy: take the likeliest token instead of sampling.
        seed: with prompt and sample index it gives each completion its key.
        sample_keys: N integers; a completion's random numbers depend on its key alone.
        eos_token_id: one or several; default the generation config's.
        delimiter: text (needs a tokenizer), or the token ids of one sequence.
        tokenizer: default the model's.
        latent_mode: default the model's own.
        forced_ids: (N, T) tokens to feed instead of sampling; what follows an EOS is ignored.
        compact: drop finished rows from the batch.

    Raises:
        ValueError: an argument outside its range.

    """
    if not prompt_ids or not all(len(row) for row in prompt_ids):
        raise ValueError("prompt_ids: every prompt needs at least one token")
    if not temperature > 0:
        raise ValueError(f"temperature: must be above 0, got {temperature}; use greedy=True for the likeliest token")
    if group_size < 1 or top_k < 0:
        raise ValueError(f"group_size must be at least 1 and top_k at least 0, got {group_size} and {top_k}")
    if forced_ids is not None:
        forced_ids = forced_ids.to(model.device, torch.long)
        max_new_tokens = forced_ids.shape[1]
    if max_new_tokens is None or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {max_new_tokens}")
    device, G, T = model.device, group_size, max_new_tokens
    N = len(prompt_ids) * G
    hybrid = (latent_mode or model.settings.latent_mode) == "hybrid"
    eos = model.eos_token_ids if eos_token_id is None else np.atleast_1d(eos_token_id).tolist()
    pad = eos[0] if eos else 0
    eos_ids = torch.tensor(eos, device=device, dtype=torch.long)
    if sample_keys is None:
        sample_keys = [sample_key(seed, b, g) for b in range(len(prompt_ids)) for g in range(G)]
    if forced_ids is not None and forced_ids.shape[0] != N:
        raise ValueError(f"forced_ids: {N} completions need as many rows, got {forced_ids.shape[0]}")
    if len(sample_keys) != N:
        raise ValueError(f"sample_keys: {N} completions need as many keys, got {len(sample_keys)}")
    draws = np.stack([np.random.default_rng(int(key) % 2**63).random(T) for key in sample_keys])  # (N, T)
    table = model.embedding_table()
    real = torch.float64 if model.lm_dtype == torch.float64 else torch.float32
    uniforms = torch.from_numpy(draws).to(real).to(device)

    ids, prompt_mask = left_pad(prompt_ids, pad, device)  # (B, P)
    P = ids.shape[1]
    logits, cache = model(model.embed(ids), prompt_mask, last_only=True)  # (B, 1, V)
    cache.batch_repeat_interleave(G)
    logits = logits[:, -1].repeat_interleave(G, dim=0)  # (N, V)
    V = logits.shape[1]
    K = min(top_k, V)
    automaton = delimiter_automaton(delimiter, tokenizer or model.tokenizer, V).to(device)
    attention_mask = torch.cat([prompt_mask.repeat_interleave(G, dim=0), prompt_mask.new_ones(N, T)], dim=1)

    shown = K or min(SHOWN_CANDIDATES, V)
    completion_ids = torch.full((N, T), pad, device=device)
    completion_mask = torch.zeros((N, T), dtype=torch.long, device=device)
    hybrid_mask = torch.zeros((N, T), dtype=torch.bool, device=device)
    sample_logprobs = torch.zeros((N, T), dtype=real, device=device)
    support_ids = torch.zeros((N, T, shown), dtype=torch.int32, device=device)
    support_probs = torch.zeros((N, T, shown), dtype=real, device=device)
    gate_mean = torch.ones((N, T), dtype=real, device=device)
    dense = torch.zeros((N, T, table.shape[1]), dtype=real, device=device) if hybrid and not K else None

    rows = torch.arange(N, device=device)  # the completions that this batch row n computes
    live = torch.ones(N, dtype=torch.bool, device=device)
    state = automaton.start(N)
    # Looking at `live` on the host waits for the accelerator: there, look rarely.
    look_every = 1 if device.type == "cpu" else 16
    for t in range(T):
        logits = logits.to(real)
        z, candidates = torch.topk(logits / temperature, shown)  # (n, K)
        if K:
            probs = torch.softmax(z, dim=1)
            chosen_from = probs
        else:
            chosen_from = torch.softmax(logits / temperature, dim=1)  # (n, V)
            probs = chosen_from.gather(1, candidates)
        if forced_ids is not None:
            token = torch.where(live, forced_ids[rows, t], pad)
        elif greedy:
            token = logits.argmax(dim=1)
        else:
            pick = _inverse_cdf(chosen_from, uniforms[rows, t])
            token = candidates.gather(1, pick).squeeze(1) if K else pick.squeeze(1)
        logprob = logits.gather(1, token.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1)

        state = automaton.advance(state, token)
        completion_ids[rows, t] = torch.where(live, token, pad)
        completion_mask[rows, t] = live.long()
        sample_logprobs[rows, t] = torch.where(live, logprob, 0)
        support_ids[rows, t] = candidates.int()
        support_probs[rows, t] = probs
        live = live & ~torch.isin(token, eos_ids)
        if t == T - 1:
            break
        if t % look_every == 0:
            alive = int(live.sum())
            if alive == 0:
                break
            if compact and alive <= 0.875 * rows.numel():
                keep = live.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                rows, live, state, token = rows[keep], live[keep], state[keep], token[keep]
                candidates, probs, chosen_from = candidates[keep], probs[keep], chosen_from[keep]

        inputs = model.embed(token)  # (n, D)
        if hybrid:
            mixed = automaton.thinking(state) & live
            if dense is None:
                latents = mix_candidates(candidates, probs, table)
            else:
                latents = latent_embedding(chosen_from, table)
                dense[rows, t] = latents
            out, a = model.gate(inputs, latents)
            inputs = torch.where(mixed.unsqueeze(1), out.to(inputs.dtype), inputs)
            hybrid_mask[rows, t] = mixed
            gate_mean[rows, t] = torch.where(mixed, a.mean(dim=1), 1)
        logits, cache = model(inputs.unsqueeze(1), attention_mask[rows, : P + t + 1], cache)
        logits = logits[:, -1]

    full = Rollout(
        prompt_ids=ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        hybrid_mask=hybrid_mask,
        sample_logprobs=sample_logprobs,
        support_ids=support_ids,
        support_probs=support_probs,
        gate_mean=gate_mean,
        group_size=G,
        temperature=temperature,
        top_k=K,
        dense_latents=dense,
    )
    return full if forced_ids is not None else full.select(0, N)


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index at which the running sum of `probs` (n, K) passes `uniforms` (n,): (n, 1)."""
    cdf = probs.cumsum(dim=1)
    total = cdf[:, -1:]  # the draw stays below it, or a rounded-up one would pick a token of probability 0
    threshold = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True)
