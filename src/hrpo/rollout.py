"""Hybrid decoding: prompts in, a `Rollout` out (HRPO, arXiv:2505.18454)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrpo.data import Rollout, SamplingParams, sample_key
from hrpo.delimiter import DelimiterAutomaton, delimiter_automaton
from hrpo.engine.buffer import RolloutBuffer, compacted
from hrpo.engine.decoders import make_decoder
from hrpo.engine.interface import DEFAULT, EngineOptions, State
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
    decoding.on_finished = on_finished or decoding.on_finished
    while decoding.admit():
        decoding.choose()
        decoding.drop_finished()
        while decoding.ages and not decoding.can_admit():
            decoding.step()
            decoding.drop_finished()
        decoding.feed()
    return decoding.rollout()


class _Decoding:
    """A batch on its way.

    rows: tensors by name, of the n rows in the batch, row n computes completion index[n]:
        index, t (n,): the completion, and which token of it comes next.
        live (n,): no end has come yet.
        phase (n,): of the delimiter automaton.
        token (n,), candidates (n, K): chosen last, and the likeliest tokens then.
        distribution (n, K), or (n, V) without top_k: what tokens were sampled from.
        uniforms (n,), hidden (n, D): the random numbers of their places; what the head read, with modes that feed it.
    fed: logits (n, V) and hidden (n, D) of the next tokens, where they are not chosen yet.
    ages: t on the host, which need not wait for the device to know it.
    buffer: what has been decoded.
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
        self.B, self.T = len(prompt_ids), sampling.max_new_tokens or 0
        self.on_finished: Callable[[int], None] = lambda count: None
        self.V, self.K = model.vocab_size, min(sampling.top_k, model.vocab_size)
        self.real = torch.float64 if model.lm_dtype == torch.float64 else torch.float32
        N, device = self.B * self.G, model.device
        accelerator = accelerator_for(device, options)
        self.look_every = accelerator.look_every
        self.kernels = accelerator.decoding(model, options)
        self.at_a_time = min(self.B, max(1, (max_rows or N) // self.G))  # prompts
        longest = max(map(len, prompt_ids))
        self.decoder = make_decoder(self.kernels, prompts=self.at_a_time, longest_prompt=longest, max_new_tokens=self.T)
        self.gate = self.kernels.gate()
        accelerator.release_memory()  # what making the copies has left
        self.compact = options.compact and self.decoder.compacts
        keep = self.kernels.keep
        draws = np.stack([np.random.default_rng(int(key) % 2**63).random(self.T) for key in sample_keys])  # (N, T)
        self.uniforms = keep("uniforms", torch.from_numpy(draws).to(self.real).to(device))
        self.forced_ids = None if forced_ids is None else keep("forced_ids", forced_ids)
        self.automaton = automaton.with_table(keep("automaton", automaton.table))
        self.eos = keep("eos", torch.tensor(eos, device=device, dtype=torch.long))
        whole = mode.thinks and not self.K
        self.table = keep("embeddings", model.embedding_table().to(self.real)) if whole else None
        self.shown, stores = stored_candidates(mode, self.K, self.V)
        self.D, self.pad = model.gate.hidden_size, eos[0] if eos else 0
        self.buffer = RolloutBuffer(
            N, self.T, self.shown, self.D if stores else 0, pad=self.pad, real=self.real, device=device, keep=keep
        )
        self.rows: State = {}
        self.fed: tuple[Tensor, Tensor] | None = None
        self.ages: list[int] = []
        self.taken = self.steps = self.finished = 0

    def can_admit(self) -> bool:
        """Whether there are prompts waiting, and rows for them."""
        free = self.at_a_time - -(-len(self.ages) // self.G)  # prompts whose rows have room
        return self.taken < self.B and free > 0 and (not self.ages or (self.compact and self.decoder.refills))

    def admit(self) -> bool:
        """Take waiting prompts into the free rows; whether there is anything to decode."""
        if self.can_admit():
            G, free = self.G, self.at_a_time - -(-len(self.ages) // self.G)
            first, last = self.taken, min(self.B, self.taken + free)
            logits = self.decoder.admit(self.prompt_ids[first:last], G).repeat_interleave(G, dim=0)
            hidden = self.read().repeat_interleave(G, dim=0)
            index = torch.arange(first * G, last * G, device=self.model.device)
            start = {"index": index, "t": 0 * index, "live": index >= 0, "phase": self.automaton.start(len(index))}
            if self.fed and self.ages:
                self.rows = {name: torch.cat([self.rows[name], value]) for name, value in start.items()}
                logits, hidden = (torch.cat(pair) for pair in zip(self.fed, (logits, hidden), strict=True))
            else:
                self.rows = start
            self.fed = logits, hidden
            self.taken = last
            self.ages += [0] * len(index)
        return bool(self.ages)

    def read(self) -> Tensor:
        """Return what the head read last where the mode is fed that, (n, D); else nothing, (n, 0)."""
        hidden = self.decoder.hidden
        return (hidden if self.mode.source == "hidden" else hidden[:, :0]).to(self.real)

    def choose(self) -> None:
        """Choose each row's next token, by the logits that are there."""
        assert self.fed is not None
        (logits, hidden), self.fed = self.fed, None
        self.rows = self._chosen(self.rows, logits, hidden)

    def step(self) -> None:
        """Feed each row what was chosen, and choose its next token: one step that can be repeated."""
        key = self.decoder.ready()
        sampler = (self.sampling.temperature, self.sampling.greedy, self.K, self.shown, self.pad, self.mode)
        self.rows = self.kernels.repeat(self._step, self.rows, key and (key, *sampler))
        self.ages = [age + 1 for age in self.ages]

    def _step(self, rows: State) -> State:
        logits = self._logits(rows)
        return self._chosen({**rows, "t": rows["t"] + 1}, logits, self.read())

    def feed(self) -> None:
        """Feed each row what was chosen, and wait with the next tokens for rows that come in."""
        if self.ages:
            self.decoder.ready()
            self.fed = self._logits(self.rows), self.read()
            self.rows["t"] = self.rows["t"] + 1
            self.ages = [age + 1 for age in self.ages]

    def _chosen(self, rows: State, logits: Tensor, hidden: Tensor) -> State:
        """Choose tokens and write them down: logits (n, V)."""
        K, tau, at, live = self.K, self.sampling.temperature, (rows["index"], rows["t"]), rows["live"]
        uniforms = self.uniforms[at]
        found, candidates, total = self.kernels.top_k(logits, K or self.shown, self.real)  # (n, K) twice, (n,)
        if K:
            probs = distribution = torch.softmax(found / tau, dim=1)
        else:
            distribution = torch.softmax(logits.to(self.real) / tau, dim=1)  # (n, V)
            probs = distribution.gather(1, candidates)
        if self.forced_ids is not None:
            token = torch.where(live, self.forced_ids[at], self.pad)
        elif self.sampling.greedy:
            token = logits.argmax(dim=1)
        else:
            pick = _inverse_cdf(distribution, uniforms)
            token = candidates.gather(1, pick).squeeze(1) if K else pick.squeeze(1)
            if self.mode.likeliest:
                token = torch.where(self.automaton.thinking(rows["phase"]), candidates[:, 0], token)
        logprob = logits.gather(1, token.unsqueeze(1)).squeeze(1).to(self.real) - total
        self.buffer.write_tokens(at, token, logprob, candidates, probs, live)
        chosen = {"token": token, "candidates": candidates, "distribution": distribution, "uniforms": uniforms}
        chosen["live"] = live & ~torch.isin(token, self.eos)
        chosen["phase"] = self.automaton.advance(rows["phase"], token)
        return {**rows, **chosen, "hidden": hidden}

    def _logits(self, rows: State) -> Tensor:
        """Feed each row its token, or while it thinks what the mode makes of token and latent: logits (n, V)."""
        mode = self.mode
        inputs = self.model.embed(rows["token"])  # (n, D)
        if mode.thinks:
            thinking = self.automaton.thinking(rows["phase"]) & rows["live"]
            latents = mode.latent(
                ThinkingStep(
                    probs=rows["distribution"],
                    hidden=rows["hidden"] if mode.source == "hidden" else None,
                    uniforms=rows["uniforms"],
                    mix=lambda weights: self._mix(rows["candidates"], weights),
                )
            )
            out, a = mode.feed(self.gate, inputs, latents, mode.token_share(rows["distribution"]))
            inputs = torch.where(thinking.unsqueeze(1), out.to(inputs.dtype), inputs)
            self.buffer.write_inputs((rows["index"], rows["t"]), thinking, a, latents)
        return self.decoder.step(inputs)

    def _mix(self, candidates: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of embeddings, of all tokens or of the candidates: (n, V or K) -> (n, D)."""
        return self.kernels.mix(candidates, weights) if self.table is None else weights @ self.table

    def drop_finished(self) -> None:
        """Drop rows that have finished, where that is possible and worth a look."""
        self.steps += 1
        if self.steps % self.look_every and max(self.ages) != self.T - 1:
            return
        alive = [row and age < self.T - 1 for row, age in zip(self.rows["live"].tolist(), self.ages, strict=True)]
        size = self.decoder.rows_for(sum(alive)) if self.compact or not any(alive) else len(alive)
        finished = self.taken * self.G - sum(alive)
        if finished > self.finished:
            self.on_finished(finished - self.finished)
        self.finished = finished
        if size == len(alive):
            return
        spare = size - sum(alive)  # finished rows that stay
        survivors = compacted([row or (spare := spare - 1) >= 0 for row in alive])
        self.decoder.keep(survivors)
        self.ages = [self.ages[row] for row in survivors]
        index = torch.tensor(survivors, device=self.model.device, dtype=torch.long)
        self.rows = {name: value[index] for name, value in self.rows.items()}

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
