"""Hybrid decoding: prompts in, a `Rollout` out (HRPO, arXiv:2505.18454)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrpo.common.errors import InputError
from hrpo.common.memory import total_memory
from hrpo.config.schema import LatentMode
from hrpo.data import SHOWN_CANDIDATES, Rollout, left_pad, sample_key
from hrpo.delimiter import delimiter_automaton
from hrpo.engine.cpu.inference_model import decoding_gate
from hrpo.engine.cpu.kernels import kernels_for
from hrpo.engine.cpu.malloc import give_back
from hrpo.engine.cpu.top_k import top_candidates
from hrpo.engine.options import FAST, Techniques
from hrpo.engine.packed_decoder import make_decoder
from hrpo.latent import Mode, feed, mode_of, noise_table, put_in_place, token_share, weigh
from hrpo.model import HybridCausalLM, context_of, context_text
from hrpo.models.compat import check_usable


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
    latent_mode: LatentMode | Mode | None = None,
    forced_ids: Tensor | None = None,
    max_rows: int | None = None,
    on_finished: Callable[[int], None] | None = None,
    techniques: Techniques = FAST,
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
        eos_token_id: one or several; default the model's `eos_token_ids`.
        delimiter: text (needs a tokenizer), or the token ids of one sequence.
        tokenizer: default the model's.
        latent_mode: a name, or a mode of `hrpo.latent` with values of your own; default the model's own.
        forced_ids: (N, T) tokens to feed instead of sampling; what follows an EOS is ignored.
        max_rows: completions at a time, at least one group; when some finish, waiting prompts take their rows. It
            bounds memory; None takes all at once.
        on_finished: called with the number of completions that have just been finished.
        techniques: what makes it fast; for tests and benchmarks.

    Raises:
        ValueError: an argument outside its range.
        InputError: a model that cannot be used, see `check_usable`; a prompt and `max_new_tokens` beyond the model's
            context; or more completions than memory holds.

    """
    check_usable(model)
    if not prompt_ids or not all(len(row) for row in prompt_ids):
        raise ValueError("prompt_ids: every prompt needs at least one token")
    embedded = len(model.embedding.weight)
    if (largest := max(map(max, prompt_ids))) >= embedded:
        raise InputError(
            f"model.name: a prompt has the token {largest}, but the model knows {embedded}: "
            "its tokenizer is another model's; put its own into the folder"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: must be above 0, got {temperature}; use greedy=True for the likeliest token")
    if group_size < 1 or top_k < 0:
        raise ValueError(f"group_size must be at least 1 and top_k at least 0, got {group_size} and {top_k}")
    if forced_ids is not None:
        forced_ids = forced_ids.to(model.device, torch.long)
        max_new_tokens = forced_ids.shape[1]
    if max_new_tokens is None or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {max_new_tokens}")
    device, G, T, B = model.device, group_size, max_new_tokens, len(prompt_ids)
    N = B * G
    settings = model.settings
    mode = latent_mode
    if not isinstance(mode, Mode):
        mode = mode_of(mode or settings.latent_mode, settings.mixed_in)
    longest, context = max(map(len, prompt_ids)), context_of(model.bare_lm.config)
    if context is not None and longest + T > context:
        raise InputError(
            f"max_new_tokens: {T} after a prompt of {longest} leave the model's "
            f"{context_text(model.bare_lm.config)}; lower it"
        )
    check_memory(model, mode, N, T, top_k)
    thinks = mode.latent != "none"
    eos = model.eos_token_ids if eos_token_id is None else np.atleast_1d(eos_token_id).tolist()
    pad = eos[0] if eos else 0
    eos_ids = torch.tensor(eos, device=device, dtype=torch.long)
    if sample_keys is None:
        sample_keys = [sample_key(seed, b, g) for b in range(B) for g in range(G)]
    if forced_ids is not None and forced_ids.shape[0] != N:
        raise ValueError(f"forced_ids: {N} completions need as many rows, got {forced_ids.shape[0]}")
    if len(sample_keys) != N:
        raise ValueError(f"sample_keys: {N} completions need as many keys, got {len(sample_keys)}")
    draws = np.stack([np.random.default_rng(int(key) % 2**63).random(T) for key in sample_keys])  # (N, T)
    real = torch.float64 if model.lm_dtype == torch.float64 else torch.float32
    uniforms = torch.from_numpy(draws).to(real).to(device)
    at_a_time = min(B, max(1, (max_rows or N) // G))  # prompts
    V = model.vocab_size
    K = min(top_k, V)
    shown, stores = _kept(mode, K, V)
    automaton = delimiter_automaton(delimiter, tokenizer or model.tokenizer, V).to(device)
    table = model.embedding_table().to(real) if thinks and not K else None
    library = kernels_for(model, techniques, "decoding")
    decoder = make_decoder(model, techniques, library, prompts=at_a_time, longest_prompt=longest, max_new_tokens=T)
    gate = decoding_gate(model, techniques, library)
    give_back(device)  # what making the copies has left
    compact = techniques.compact and decoder.compacts

    completion_ids = torch.full((N, T), pad, device=device)
    completion_mask = torch.zeros((N, T), dtype=torch.long, device=device)
    hybrid_mask = torch.zeros((N, T), dtype=torch.bool, device=device)
    sample_logprobs = torch.zeros((N, T), dtype=real, device=device)
    support_ids = torch.zeros((N, T, shown), dtype=torch.int32, device=device)
    support_probs = torch.zeros((N, T, shown), dtype=real, device=device)
    gate_mean = torch.ones((N, T), dtype=real, device=device)
    D = model.gate.hidden_size
    dense = torch.zeros((N, T, D), dtype=real, device=device) if stores else None
    noise = noise_table(V, D, dense) if dense is not None and mode.replaced else None

    # The batch: row n computes completion rows[n], whose next token is its t[n]-th.
    rows = torch.empty(0, dtype=torch.long, device=device)
    t, live, state = rows.clone(), rows.bool(), automaton.start(0)
    logits = torch.empty(0, V, dtype=real, device=device)  # the model's, in its dtype once there are any
    hidden = torch.empty(0, D, dtype=real, device=device)  # what the head read to give the logits
    ages: list[int] = []  # t, known without asking the device
    taken = steps = 0
    # Looking at what has finished waits for an accelerator: there, look rarely.
    look_every = 1 if device.type == "cpu" else 16
    while True:
        free = at_a_time - -(-len(ages) // G)  # prompts whose rows have room
        if taken < B and free and (not ages or (compact and decoder.refills)):
            count = min(free, B - taken)
            first = decoder.admit(prompt_ids[taken : taken + count], G)  # (count, V)
            fresh = torch.arange(taken * G, (taken + count) * G, device=device)
            taken += count
            rows, t = torch.cat([rows, fresh]), torch.cat([t, torch.zeros_like(fresh)])
            live, state = torch.cat([live, fresh >= 0]), torch.cat([state, automaton.start(fresh.numel())])
            logits = torch.cat([logits.to(first.dtype), first.repeat_interleave(G, dim=0)])
            if mode.latent == "hidden":
                hidden = torch.cat([hidden, decoder.hidden.to(real).repeat_interleave(G, dim=0)])
            ages += [0] * fresh.numel()
        if not ages:
            break

        candidate_logits, candidates, total = top_candidates(logits, K or shown, real, library)  # (n, K) twice, (n,)
        if K:
            probs = chosen_from = torch.softmax(candidate_logits / temperature, dim=1)
        else:
            chosen_from = torch.softmax(logits.to(real) / temperature, dim=1)  # (n, V)
            probs = chosen_from.gather(1, candidates)
        if forced_ids is not None:
            token = torch.where(live, forced_ids[rows, t], pad)
        elif greedy:
            token = logits.argmax(dim=1)
        else:
            pick = _inverse_cdf(chosen_from, uniforms[rows, t])
            token = candidates.gather(1, pick).squeeze(1) if K else pick.squeeze(1)
            if mode.likeliest:
                token = torch.where(automaton.thinking(state), candidates[:, 0], token)
        logprob = logits.gather(1, token.unsqueeze(1)).squeeze(1).to(real) - total

        state = automaton.advance(state, token)
        completion_ids[rows, t] = torch.where(live, token, pad)
        completion_mask[rows, t] = live.long()
        sample_logprobs[rows, t] = torch.where(live, logprob, 0)
        support_ids[rows, t] = candidates[:, :shown].int()
        support_probs[rows, t] = probs[:, :shown]
        live = live & ~torch.isin(token, eos_ids)

        steps += 1
        oldest = max(ages)
        if steps % look_every == 0 or oldest == T - 1:
            alive = [row and age < T - 1 for row, age in zip(live.tolist(), ages, strict=True)]
            if not any(alive) or (compact and not all(alive)):
                survivors = _survivors(alive)
                if on_finished is not None:
                    on_finished(len(alive) - len(survivors))
                decoder.keep(survivors)
                ages = [ages[row] for row in survivors]
                if not ages:
                    rows, t, live, state, logits, hidden = (x[:0] for x in (rows, t, live, state, logits, hidden))
                    continue
                index = torch.tensor(survivors, device=device)
                rows, t, live, state, token = (x[index] for x in (rows, t, live, state, token))
                candidates, probs, chosen_from = candidates[index], probs[index], chosen_from[index]
                if mode.latent == "hidden":
                    hidden = hidden[index]

        inputs = model.embed(token)  # (n, D)
        if thinks:
            mixed = automaton.thinking(state) & live
            if mode.latent == "hidden":
                latents = hidden
            elif table is None:
                latents = model.mix(candidates, weigh(mode, probs), library)
            else:
                latents = weigh(mode, chosen_from) @ table
            if noise is not None:
                latents = put_in_place(mode, latents, uniforms[rows, t], noise)
            if dense is not None:
                dense[rows, t] = latents
            out, a = feed(mode, gate, inputs, latents, token_share(mode, chosen_from))
            inputs = torch.where(mixed.unsqueeze(1), out.to(inputs.dtype), inputs)
            hybrid_mask[rows, t] = mixed
            gate_mean[rows, t] = torch.where(mixed, a.mean(dim=1), 1)
        del logits  # their memory serves the next ones
        logits = decoder.step(inputs)
        if mode.latent == "hidden":
            hidden = decoder.hidden.to(real)
        t = t + 1
        ages = [age + 1 for age in ages]

    ids, prompt_mask = left_pad(prompt_ids, pad, device)  # (B, P)
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
        mode=mode,
    )
    return full if forced_ids is not None else full.select(0, N)


def check_memory(model: HybridCausalLM, mode: Mode, completions: int, max_new_tokens: int, top_k: int) -> None:
    """Refuse more completions than there is memory for what a `Rollout` keeps of them.

    Raises:
        InputError: names the completions and the memory.

    """
    real = 8 if model.lm_dtype == torch.float64 else 4
    shown, stores = _kept(mode, min(top_k, model.vocab_size), model.vocab_size)
    each = shown * (4 + real) + 3 * real + 17 + stores * model.gate.hidden_size * real  # bytes of a token
    needed, there = completions * max_new_tokens * each, total_memory(model.device)
    if needed > there:
        raise InputError(
            f"group_size: {completions:,} completions of up to {max_new_tokens:,} tokens keep {needed / 1e9:,.0f} GB, "
            f"and there are {there / 1e9:,.0f} GB; lower it, the prompts or max_new_tokens"
        )


def _kept(mode: Mode, K: int, V: int) -> tuple[int, bool]:
    """Return how many candidates of a token are kept, and whether the latents are, instead of all candidates."""
    stores = mode.latent != "none" and (not K or mode.latent == "hidden" or mode.replaced != "")
    return min(SHOWN_CANDIDATES, K or V) if stores or not K else K, stores


def _survivors(alive: list[bool]) -> list[int]:
    """Return which old row each new row is: those that stay keep their place, the last ones fill the gaps."""
    count = sum(alive)
    order = list(range(count))
    gaps = [row for row in range(count) if not alive[row]]
    movers = [row for row in range(count, len(alive)) if alive[row]]
    for gap, mover in zip(gaps, movers, strict=True):
        order[gap] = mover
    return order


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index at which the running sum of `probs` (n, K) passes `uniforms` (n,): (n, 1)."""
    cdf = probs.cumsum(dim=1)
    total = cdf[:, -1:]  # the draw stays below it, or a rounded-up one would pick a token of probability 0
    threshold = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True).clamp(max=cdf.shape[1] - 1)  # a row of NaN has no place
