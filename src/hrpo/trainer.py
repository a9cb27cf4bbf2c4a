"""One update of training, `Trainer.step`: sample, reward, compare, replay, step. Every process runs the same loop."""

import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hrpo.algorithms import Algorithm, LossInputs
from hrpo.chat import decode, encode, id_lists
from hrpo.common import distributed
from hrpo.common.distributed import full
from hrpo.common.errors import InputError
from hrpo.config.schema import Policy
from hrpo.data import Metrics, Rollout, SamplingParams, sample_key
from hrpo.engine.select import accelerator_for
from hrpo.engines import RolloutEngine
from hrpo.latent import LatentMode
from hrpo.logprobs import broken_replay, replay, replay_errors, rounded_embeddings
from hrpo.loss import token_weights
from hrpo.model import HybridCausalLM
from hrpo.rewards import combine, values_of
from hrpo.tasks import Example, Task
from hrpo.tasks.base import RewardContext


@dataclass(frozen=True)
class Settings:
    """What an update is made of.

    problems: of an update; group_size: completions of each, G.
    sampling, mode: how completions are sampled, and what is fed while the model thinks.
    policy: whose log-probabilities are learnt from, see `replay`.
    mask_truncated: leave completions that were cut off at the length limit out of the loss.
    max_tokens: of a micro-batch; 0 leaves it to the device.
    recompute: share of the model's blocks that keep only their inputs; None leaves it to the device.
    max_steps, warmup, max_grad_norm: of the optimizer.
    seed: of the order of problems and of sampling.
    exact: replayed log-probabilities are those sampled, but for the order of sums.
    """

    problems: int
    group_size: int
    sampling: SamplingParams
    mode: LatentMode
    policy: Policy = "model"
    mask_truncated: bool = False
    max_tokens: int = 0
    recompute: float | None = None
    max_steps: int = 100
    warmup: float = 0.1
    max_grad_norm: float = 0.1
    seed: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Update:
    """What happened in an update.

    completions: N texts; rewards: (N,), NaN where there is none; means: of each part of the reward.
    context: what rewards want logged.
    stats: of the loss and of the optimizer; "skipped" is 1 where no step was taken.
    broken: why training must not go on; empty where it may.
    sample_seconds, seconds: of sampling and scoring, and of all.
    """

    examples: list[Example]
    rollout: Rollout
    completions: list[str]
    rewards: Tensor
    stats: Metrics
    means: dict[str, float] = field(default_factory=dict)
    context: RewardContext = field(default_factory=lambda: RewardContext([]))
    broken: str = ""
    sample_seconds: float = 0.0
    seconds: float = 0.0


class ShardedModel(Protocol):
    """A model whose parameters are shared out between the processes."""

    def replay(self, rollout: Rollout, **options: Any) -> tuple[Tensor, Tensor | None]:
        """See `hrpo.replay`; all processes call it equally often."""

    def unsharded_model(self) -> HybridCausalLM:
        """Return a copy with all weights; all processes call it."""


Write = Callable[[Sequence[Example]], Rollout]  # the written solutions of problems, as a rollout


class Trainer:
    """A model and how it learns.

    Args:
        model: the same in all processes.
        task: its training problems, prompts and rewards.
        algorithm: advantages and loss.
        optimizer: of what is trained; each group has its "peak_lr".
        engine: completes prompts.
        settings: of an update.
        write: what algorithms that do not sample learn from.
        sharded: the model, where its parameters are shared out.

    """

    def __init__(
        self,
        model: HybridCausalLM,
        task: Task,
        algorithm: Algorithm,
        optimizer: torch.optim.Optimizer,
        engine: RolloutEngine,
        settings: Settings,
        *,
        write: Write,
        sharded: ShardedModel | None = None,
    ) -> None:
        self.model, self.task, self.algorithm, self.optimizer = model, task, algorithm, optimizer
        self.engine, self.settings, self.write, self.sharded = engine, settings, write, sharded
        self.accelerator = accelerator_for(model.device)
        self.updates = 0  # done so far
        self.stepping = False  # an update has begun to change weights, and is not in the log yet

    def step(self) -> Update:
        """Do one update on the next problems; all processes do it together."""
        start = time.perf_counter()
        examples = self.batch(self.updates)
        rollout = self.roll_out(examples, key=self.updates)  # (N, T)
        completions = decode(self.model.tokenizer, rollout)  # N texts
        rewards, means, context = self.score(examples, completions, id_lists(rollout))  # (N,)
        advantages = self.algorithm.advantages(rewards, rollout.group_size).float().to(self.model.device)  # (N,)
        sampled = time.perf_counter()
        stats, broken = self.learn(rollout, advantages)
        self.updates += 1
        seconds = time.perf_counter() - start
        return Update(examples, rollout, completions, rewards, stats, means, context, broken, sampled - start, seconds)

    def batch(self, update: int) -> list[Example]:
        """Return the problems of an update: each epoch goes through the training problems in an order of its own."""
        size, B = len(self.task.train), self.settings.problems
        places = range(update * B, (update + 1) * B)
        return [self.task.train[_epoch(self.settings.seed, at // size, size)[at % size]] for at in places]

    def roll_out(self, examples: Sequence[Example], *, key: int | str, max_new_tokens: int | None = None) -> Rollout:
        """Return completions of problems, group_size each; each process makes its share, and gets all.

        Random numbers depend on (seed, key, problem, sample) alone.
        """
        if not self.algorithm.samples:
            self.accelerator.release_memory()  # which an engine does by itself
            return self.write(examples)
        s, mine = self.settings, distributed.local_slice(len(examples))
        model = self.unsharded_model()
        rollout = None
        if mine:
            self.engine.update_weights(model)
            rollout = self.engine.generate(
                encode(model.tokenizer, [self.task.messages(examples[b].question) for b in mine]),
                replace(s.sampling, max_new_tokens=max_new_tokens or s.sampling.max_new_tokens),
                s.mode,
                group_size=s.group_size,
                sample_keys=[sample_key(s.seed, key, b, g) for b in mine for g in range(s.group_size)],
            )
        parts = [part for part in distributed.gather(rollout) if part is not None]
        return Rollout.join(parts, pad=(model.eos_token_ids or [0])[0])

    def score(
        self, examples: list[Example], completions: list[str], completion_ids: list[list[int]]
    ) -> tuple[Tensor, dict[str, float], RewardContext]:
        """Return the rewards of the completions, (N,), the mean of each part of them, and what they want to log.

        Each process scores its share. All groups are of a size.

        Raises:
            InputError: a reward has failed in one of the processes; it is raised in all.

        """
        if not self.algorithm.samples:
            return torch.ones(len(completions)), {}, RewardContext([])
        G, mine = len(completions) // len(examples), distributed.local_slice(len(examples))
        own = slice(mine.start * G, mine.stop * G)
        values, failure = torch.empty(0, len(self.task.weights), dtype=torch.float64), None
        context = self.reward_context(completion_ids[own])
        try:
            if mine:
                problems = [examples[b] for b in mine for _ in range(G)]
                values = values_of(self.task, problems, completions[own], context)
        except InputError as error:
            failure = error
        parts = distributed.gather((values, context, failure))
        for _, _, failed in parts:
            if failed:
                raise distributed.everywhere(failed)
        rewards, means = combine(self.task, torch.cat([values for values, _, _ in parts]))
        return rewards, means, RewardContext.joined([part for _, part, _ in parts], completion_ids)

    def reward_context(self, completion_ids: list[list[int]]) -> RewardContext:
        """Return what rewards get to know of completions and of this run."""
        seen = self.updates * self.settings.problems
        return RewardContext(completion_ids, self.updates, self.settings.max_steps, seen / len(self.task.train))

    def learn(self, rollout: Rollout, advantages: Tensor) -> tuple[Metrics, str]:
        """Learn from a rollout, unless something in it or in its gradient is amiss; and why not to go on at all."""
        if not rollout.finite():
            return {"skipped": 1.0}, ""
        stats = self.gradients(rollout, advantages)
        if broken_replay(stats, exact=self.settings.exact):
            rounded = self.rounding_errors(rollout)
            return {**stats, "skipped": 1.0}, broken_replay(stats, exact=self.settings.exact, rounded=rounded) or ""
        return {**stats, **self.optimizer_step(stats["loss"])}, ""

    def gradients(self, rollout: Rollout, advantages: Tensor) -> Metrics:
        """Replay the rollout in micro-batches, and leave the sum of their gradients in the parameters."""
        s, algorithm = self.settings, self.algorithm
        mask = rollout.completion_mask
        if s.mask_truncated:
            mask = mask * ~rollout.truncated(self.model.eos_token_ids).unsqueeze(1)
        weights = token_weights(mask, algorithm.loss_aggregation)  # (N, T), of the whole batch
        if not algorithm.beta:  # then a group without a signal has no gradient
            rollout, advantages, weights = _with_signal(rollout, advantages, weights)
        totals: dict[str, Tensor] = {}
        gaps = [weights.new_zeros(0)]  # between sampled and replayed log-probabilities, of each token
        for part, rows, weight in self.micro_batches(rollout, weights):
            logprobs, reference = self.replay(part, policy=s.policy, with_reference=algorithm.beta != 0)  # (n, t) each
            inputs = LossInputs(
                logprobs, reference, part.sample_logprobs, advantages[rows], part.completion_mask, weight
            )
            loss, stats = algorithm.loss(inputs)
            self.backward(loss)
            for name, value in {"loss": loss.detach(), **stats}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
            if algorithm.samples and s.policy == "model":
                gaps.append((logprobs.detach() - part.sample_logprobs).abs()[part.completion_mask.bool()])
        if self.sharded is None:  # fully_shard has added them up already
            distributed.sum_gradients(self.trained())
        result = distributed.all_reduce_sum({name: value.item() for name, value in totals.items()})
        if not algorithm.samples or s.policy != "model":
            return result
        return {**result, **replay_errors(torch.cat(distributed.gather(torch.cat(gaps))))}

    @torch.no_grad()
    def rounding_errors(self, rollout: Rollout) -> Metrics:
        """Return how far replayed log-probabilities move where the embeddings are rounded otherwise."""
        gaps = [torch.empty(0, device=self.model.device)]
        for part, _, _ in self.micro_batches(rollout, rollout.completion_mask):
            logprobs, _ = self.replay(part, with_reference=False)
            with rounded_embeddings(self.model):
                others, _ = self.replay(part, with_reference=False)
            gaps.append((others - logprobs).abs()[part.completion_mask.bool()])
        return replay_errors(torch.cat(distributed.gather(torch.cat(gaps))))

    def micro_batches(self, rollout: Rollout, weights: Tensor) -> Iterator[tuple[Rollout, slice, Tensor]]:
        """Yield this process's groups in micro-batches, with their rows and the weights of their tokens, (n, t).

        Sharded parameters want equally many everywhere: who has fewer goes through a completion that weighs nothing.
        """
        budget, G = self.token_budget(rollout), rollout.group_size
        mine = distributed.local_slice(len(rollout) // G)
        places: list[tuple[int, int]] = []
        if mine:
            own = rollout.groups(mine)
            places = [(mine.start * G + first, mine.start * G + last) for first, last in own.micro_batches(budget)]
        most = max(distributed.gather(len(places))) if self.sharded else len(places)
        for at, (first, last) in enumerate([*places, *(most - len(places)) * [(0, 1)]]):
            if at == 1:
                self.accelerator.settle_gradients(self.trained())
            part = rollout.select(first, last)
            weight = weights[first:last, : part.completion_mask.shape[1]]
            yield part, slice(first, last), weight if at < len(places) else torch.zeros_like(weight)

    def token_budget(self, rollout: Rollout) -> int:
        """Return the tokens of a micro-batch."""
        return self.settings.max_tokens or rollout.whole_groups(*self.accelerator.microbatch(self.model))

    def replay(
        self, rollout: Rollout, *, policy: Policy = "model", with_reference: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Feed a rollout again, see `hrpo.replay`."""
        run = functools.partial(replay, self.model) if self.sharded is None else self.sharded.replay
        return run(rollout, policy=policy, with_reference=with_reference, recompute=self.recompute(rollout))

    def recompute(self, rollout: Rollout) -> float:
        """Return the share of the model's blocks that are computed again in the backward pass."""
        if self.settings.recompute is not None:
            return self.settings.recompute
        tokens = int(rollout.prompt_mask.sum() + rollout.completion_mask.sum())
        return self.accelerator.checkpointing_share(self.model, tokens)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those that are there."""
        # fully_shard leaves the mean over the processes of what they add
        torch.autograd.backward(loss if self.sharded is None else loss * distributed.count())

    def optimizer_step(self, loss: float) -> Metrics:
        """Clip the gradients, step at this update's learning rates, and forget the gradients.

        Where the loss or a gradient is not finite nothing is done, and the gradients stay for a look.
        """
        s = self.settings
        factor = learning_rate_factor(self.updates, s.max_steps, s.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        parameters = self.trained()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        metrics = {"grad_norm": full(norm).item(), "lr": self.optimizer.param_groups[0]["lr"], "skipped": 0.0}
        if not math.isfinite(metrics["grad_norm"]) or not math.isfinite(loss):
            return {**metrics, "skipped": 1.0}
        torch.nn.utils.clip_grads_with_norm_(parameters, s.max_grad_norm, norm)
        self.stepping = True
        self.optimizer.step()
        self.optimizer.zero_grad()
        return metrics

    def forget_gradients(self) -> None:
        """Take no step with the gradients that are there."""
        self.optimizer.zero_grad()

    def trained(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def unsharded_model(self) -> HybridCausalLM:
        """Return the model with all of its weights: itself, or a copy where it is sharded."""
        return self.model if self.sharded is None else self.sharded.unsharded_model()


def learning_rate_factor(step: int, updates: int, warmup: float) -> float:
    """Return the share of the peak learning rate at update `step` (from 0): linear warm-up, then a cosine to 0."""
    rise = math.ceil(updates * warmup)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (updates - rise)))


def _with_signal(rollout: Rollout, advantages: Tensor, weights: Tensor) -> tuple[Rollout, Tensor, Tensor]:
    """Leave out groups whose advantages are all zero; the first stays where none is left."""
    G = rollout.group_size
    signal = advantages.view(-1, G).any(dim=1).nonzero().flatten().tolist() or [0]
    rows = [b * G + g for b in signal for g in range(G)]
    return rollout.groups(signal), advantages[rows], weights[rows]


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, size: int) -> list[int]:
    """Return the order of an epoch."""
    return random.Random(f"order/{seed}/{epoch}").sample(range(size), size)
