"""Hybrid decoding: prompts in, a `Rollout` out (HRPO, arXiv:2505.18454)."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrpo.data import Rollout, SamplingParams, sample_key
from hrpo.delimiter import DelimiterAutomaton, delimiter_automaton
from hrpo.engine.buffer import RolloutBuffer, compacted
from hrpo.engine.interface import DEFAULT, EngineOptions
from hrpo.engine.packed_decoder import make_decoder
from hrpo.engine.request import check_request, stored_candidates
from hrpo.engine.select import accelerator_for
from hrpo.latent import LatentMode, ThinkingStep, mode_of
from hrpo.model import HybridCausalLM


@torch.no_grad()
def generate(
    model: HybridCausalLM,
    prompt_ids: Sequence[Sequence[int]],
    *,
    sampling: SamplingParams | None = None,
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
    latent_mode: str | LatentMode | None = None,
    forced_ids: Tensor | None = None,
    max_rows: int | None = None,
    on_finished: Callable[[int], None] | None = None,
    options: EngineOptions = DEFAULT,
    techniques: EngineOptions | None = None,
) -> Rollout:
    """Complete prompts, feeding each sampled token mixed with its latent until the delimiter has appeared.

    Args:
        model: the language model and its gate.
        prompt_ids: B lists of token ids, none empty.
        sampling: stands in for `max_new_tokens`, `temperature`, `top_k`, `greedy` and `seed`.
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
        latent_mode: a name of `hrpo.LATENT_MODES`, or a mode of your own; default the model's own.
        forced_ids: (N, T) tokens to feed instead of sampling; what follows an EOS is ignored.
        max_rows: completions at a time, at least one group; when some finish, waiting prompts take their rows. It
            bounds memory; None takes all at once.
        on_finished: called with the number of completions that have just been finished.
        options: of the engine; for tests and benchmarks.
        techniques: the name of `options` in 0.1, for this version.

    Raises:
        ValueError, InputError: see `hrpo.engine.request.check_request`.

    """
    options = techniques or options
    loose = SamplingParams(temperature, top_k, max_new_tokens, greedy, seed)
    if sampling is not None and loose != SamplingParams():
        raise ValueError("sampling: give it, or temperature, top_k, max_new_tokens, greedy and seed, not both")
    sampling = sampling or loose
    if forced_ids is not None:
        forced_ids = forced_ids.to(model.device, torch.long)
        sampling = dataclasses.replace(sampling, max_new_tokens=forced_ids.shape[1])
    mode = latent_mode
    if not isinstance(mode, LatentMode):
        mode = mode_of(mode or model.settings.latent_mode, model.settings.mixed_in)
    check_request(model, prompt_ids, group_size, sampling, mode, sample_keys, forced_ids)
    if sample_keys is None:
        sample_keys = [sample_key(sampling.seed, b, g) for b in range(len(prompt_ids)) for g in range(group_size)]
    eos = model.eos_token_ids if eos_token_id is None else np.atleast_1d(eos_token_id).tolist()
    automaton = delimiter_automaton(delimiter, tokenizer or model.tokenizer, model.vocab_size).to(model.device)
    decoding = _Decoding(
        model, prompt_ids, group_size, sampling, mode, sample_keys, eos, automaton, forced_ids, max_rows, options
    )
    while decoding.admit():
        step = decoding.choose()
        decoding.record(step)
        finished = decoding.drop_finished(step)
        if finished and on_finished is not None:
            on_finished(finished)
        if decoding.ages:
            decoding.feed(step)
    return decoding.rollout()


@dataclass
class _Step:
    """One step of the n rows in the batch.

    candidates, probs: (n, K) the likeliest tokens and their probabilities.
    distribution: (n, K), or (n, V) without top_k: what tokens were sampled from.
    token, logprob: (n,).
    uniforms: (n,) the random numbers of the rows' places.
    """

    candidates: Tensor
    probs: Tensor
    distribution: Tensor
    token: Tensor
    logprob: Tensor
    uniforms: Tensor

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        for name, value in list(vars(self).items()):
            setattr(self, name, value[rows])


class _Decoding:
    """A batch on its way: row n computes completion rows[n], whose next token is its t[n]-th.

    What is decoded goes to `buffer`; `ages` is t on the host, which need not wait for the device to know it.
    """

    def __init__(
        self,
        model: HybridCausalLM,
        prompt_ids: Sequence[Sequence[int]],
        group_size: int,
        sampling: SamplingParams,
        mode: LatentMode,
        sample_keys: Sequence[int],
        eos: Sequence[int],
        automaton: DelimiterAutomaton,
        forced_ids: Tensor | None,
        max_rows: int | None,
        options: EngineOptions,
    ) -> None:
        self.model, self.prompt_ids, self.G, self.sampling, self.mode = model, prompt_ids, group_size, sampling, mode
        self.forced_ids, self.B, self.T = forced_ids, len(prompt_ids), sampling.max_new_tokens or 0
        self.V, self.K = model.vocab_size, min(sampling.top_k, model.vocab_size)
        self.real = torch.float64 if model.lm_dtype == torch.float64 else torch.float32
        N, device = self.B * self.G, model.device
        draws = np.stack([np.random.default_rng(int(key) % 2**63).random(self.T) for key in sample_keys])  # (N, T)
        self.uniforms = torch.from_numpy(draws).to(self.real).to(device)

        accelerator = accelerator_for(device, options)
        self.look_every = accelerator.look_every
        self.kernels = accelerator.decoding(model, options)
        self.at_a_time = min(self.B, max(1, (max_rows or N) // self.G))  # prompts
        self.decoder = make_decoder(
            self.kernels,
            prompts=self.at_a_time,
            longest_prompt=max(map(len, prompt_ids)),
            max_new_tokens=self.T,
        )
        self.gate = self.kernels.gate()
        accelerator.release_memory()  # what making the copies has left
        self.compact = options.compact and self.decoder.compacts
        self.table = model.embedding_table().to(self.real) if mode.thinks and not self.K else None

        self.shown, stores = stored_candidates(mode, self.K, self.V)
        self.pad = eos[0] if eos else 0
        self.eos = torch.tensor(eos, device=device, dtype=torch.long)
        self.automaton, self.state = automaton, automaton.start(0)  # (n,)
        D = model.gate.hidden_size
        self.buffer = RolloutBuffer(
            N, self.T, self.shown, D if stores else 0, pad=self.pad, real=self.real, device=device
        )
        self.rows = self.t = torch.empty(0, dtype=torch.long, device=device)
        self.live = torch.empty(0, dtype=torch.bool, device=device)
        self.logits = torch.empty(0, self.V, dtype=self.real, device=device)  # in the model's dtype once there are any
        self.hidden = torch.empty(0, D, dtype=self.real, device=device)  # what the head read to give the logits
        self.ages: list[int] = []
        self.taken = self.steps = 0

    def admit(self) -> bool:
        """Take waiting prompts into the free rows; whether there is anything to decode."""
        G = self.G
        free = self.at_a_time - -(-len(self.ages) // G)  # prompts whose rows have room
        count = min(free, self.B - self.taken)
        if count and (not self.ages or (self.compact and self.decoder.refills)):
            first = self.decoder.admit(self.prompt_ids[self.taken : self.taken + count], G)  # (count, V)
            fresh = torch.arange(self.taken * G, (self.taken + count) * G, device=self.model.device)
            self.taken += count
            self.rows, self.t = torch.cat([self.rows, fresh]), torch.cat([self.t, torch.zeros_like(fresh)])
            self.live = torch.cat([self.live, fresh >= 0])
            self.state = torch.cat([self.state, self.automaton.start(len(fresh))])
            self.logits = torch.cat([self.logits.to(first.dtype), first.repeat_interleave(G, dim=0)])
            if self.mode.source == "hidden":
                read = self.decoder.hidden.to(self.real)
                self.hidden = torch.cat([self.hidden, read.repeat_interleave(G, dim=0)])
            self.ages += [0] * len(fresh)
        return bool(self.ages)

    def choose(self) -> _Step:
        """Choose each row's next token."""
        K, tau, logits = self.K, self.sampling.temperature, self.logits
        uniforms = self.uniforms[self.rows, self.t]
        found, candidates, total = self.kernels.top_k(logits, K or self.shown, self.real)  # (n, K) twice, (n,)
        if K:
            probs = distribution = torch.softmax(found / tau, dim=1)
        else:
            distribution = torch.softmax(logits.to(self.real) / tau, dim=1)  # (n, V)
            probs = distribution.gather(1, candidates)
        if self.forced_ids is not None:
            token = torch.where(self.live, self.forced_ids[self.rows, self.t], self.pad)
        elif self.sampling.greedy:
            token = logits.argmax(dim=1)
        else:
            pick = _inverse_cdf(distribution, uniforms)
            token = candidates.gather(1, pick).squeeze(1) if K else pick.squeeze(1)
            if self.mode.likeliest:
                token = torch.where(self.automaton.thinking(self.state), candidates[:, 0], token)
        logprob = logits.gather(1, token.unsqueeze(1)).squeeze(1).to(self.real) - total
        return _Step(candidates, probs, distribution, token, logprob, uniforms)

    def record(self, step: _Step) -> None:
        """Note the tokens, and which rows they end."""
        self.state = self.automaton.advance(self.state, step.token)
        self.buffer.write_tokens((self.rows, self.t), step.token, step.logprob, step.candidates, step.probs, self.live)
        self.live = self.live & ~torch.isin(step.token, self.eos)

    def drop_finished(self, step: _Step) -> int:
        """Drop rows that have finished, where that is possible and worth a look; return how many were dropped."""
        self.steps += 1
        if self.steps % self.look_every and max(self.ages) != self.T - 1:
            return 0
        alive = [row and age < self.T - 1 for row, age in zip(self.live.tolist(), self.ages, strict=True)]
        if all(alive) or (any(alive) and not self.compact):
            return 0
        survivors = compacted(alive)
        self.decoder.keep(survivors)
        self.ages = [self.ages[row] for row in survivors]
        index = torch.tensor(survivors, device=self.model.device, dtype=torch.long)
        self.rows, self.t, self.live, self.state = (x[index] for x in (self.rows, self.t, self.live, self.state))
        if not self.ages:
            self.logits = self.logits[:0]
        if self.mode.source == "hidden":
            self.hidden = self.hidden[index]
        step.keep(index)
        return len(alive) - len(survivors)

    def feed(self, step: _Step) -> None:
        """Feed each row its token, or while it thinks what the mode makes of token and latent."""
        mode = self.mode
        inputs = self.model.embed(step.token)  # (n, D)
        if mode.thinks:
            thinking = self.automaton.thinking(self.state) & self.live
            latents = mode.latent(
                ThinkingStep(
                    probs=step.distribution,
                    hidden=self.hidden if mode.source == "hidden" else None,
                    uniforms=step.uniforms,
                    mix=lambda weights: self.mix(step, weights),
                )
            )
            out, a = mode.feed(self.gate, inputs, latents, mode.token_share(step.distribution))
            inputs = torch.where(thinking.unsqueeze(1), out.to(inputs.dtype), inputs)
            self.buffer.write_inputs((self.rows, self.t), thinking, a, latents)
        del self.logits  # their memory serves the next ones
        self.logits = self.decoder.step(inputs)
        if mode.source == "hidden":
            self.hidden = self.decoder.hidden.to(self.real)
        self.t = self.t + 1
        self.ages = [age + 1 for age in self.ages]

    def mix(self, step: _Step, weights: Tensor) -> Tensor:
        """Return the weighted sum of embeddings, of all tokens or of the candidates: (n, V or K) -> (n, D)."""
        return self.kernels.mix(step.candidates, weights) if self.table is None else weights @ self.table

    def rollout(self) -> Rollout:
        """Return what has been decoded."""
        full = self.buffer.rollout(self.prompt_ids, self.G, self.sampling, self.K, self.mode)
        return full if self.forced_ids is not None else full.select(0, len(full))


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index at which the running sum of `probs` (n, K) passes `uniforms` (n,): (n, 1)."""
    cdf = probs.cumsum(dim=1)
    total = cdf[:, -1:]  # the draw stays below it, or a rounded-up one would pick a token of probability 0
    threshold = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True).clamp(max=cdf.shape[1] - 1)  # a row of NaN has no place
