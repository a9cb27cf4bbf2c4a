"""The training loop: one `train_step` an update."""

import dataclasses
import functools
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from safetensors.torch import save_file
from torch import Tensor, nn

from hrpo.advantages import distinct_share, group_advantages, signal_share
from hrpo.chat import decode, encode, id_lists
from hrpo.common import distributed, files, watchdog
from hrpo.common.console import console
from hrpo.common.distributed import full, together
from hrpo.common.errors import InputError, StoppedError, model_named_by, named_by
from hrpo.common.locks import Lock
from hrpo.config.schema import ModelConfig, Policy, RolloutConfig, TrainConfig, length_limit
from hrpo.config.validate import check_config
from hrpo.data import Metrics, Rollout, sample_key
from hrpo.engine.interface import EngineOptions
from hrpo.engine.packing_probe import packs_up_to
from hrpo.engine.select import accelerator_for
from hrpo.evaluate import Answer, answer_problems, as_rows, evaluate, summarize
from hrpo.latent import mode_of
from hrpo.logprobs import broken_replay, replay, replay_errors
from hrpo.loss import hrpo_loss, token_weights
from hrpo.model import HybridCausalLM, Lora
from hrpo.models.dates import DATE_FILE, day_of, pin_date
from hrpo.rewards import combine, or_none, score, values_of
from hrpo.rollout import check_memory, generate
from hrpo.sft import target_text, write_down
from hrpo.storage.retention import scores
from hrpo.storage.run_dir import (
    LOGS,
    OPTIMIZER_FILE,
    STATE_FILE,
    VALIDATION_FILE,
    append,
    check_run_folder,
    lines_until,
    load_optimizer,
    lock_run,
    model_in,
    optimizer_tensors,
    read_step,
    seal,
    tidy,
    whole_checkpoint,
)
from hrpo.tasks import Example, Task, load_task, remembered
from hrpo.tasks.base import RewardContext
from hrpo.tasks.held_out import hold_out
from hrpo.tasks.judge import DELIMITER
from hrpo.training.fsdp import Sharded
from hrpo.training.length_filter import context_length, fitting
from hrpo.training.nonfinite import keep_batch, not_finite, rounded_embeddings, spoilt
from hrpo.training.provenance import check_provenance, keep_provenance, provenance

SAMPLES_PER_UPDATE = 4  # completions of one prompt that samples.jsonl keeps


def learning_rate_factor(step: int, updates: int, warmup: float) -> float:
    """Return the share of the peak learning rate at update `step` (from 0): linear warm-up, then a cosine to 0."""
    rise = math.ceil(updates * warmup)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (updates - rise)))


class Trainer:
    """A run: the model, its optimizer, the task, and the folder they live in.

    Args:
        config: every setting, kept as `given`; in `config` the length limit of completions is a number.
        resume: go on from the newest checkpoint of the run folder.

    Raises:
        InputError: a setting cannot be used; nothing has been written then.

    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        check_config(config)
        # Said, as it would see one process otherwise.
        accelerator = Accelerator(
            cpu=distributed.planned() > 1 and not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=watchdog.LIMIT)],
        )
        watchdog.start()
        console.quiet = not distributed.first()
        self.given = config
        self.lock: Lock | None = None  # of the first process
        check_run_folder(self.folder, config, resume)
        if resume and distributed.first():
            self.lock = lock_run(self.folder)  # before its checkpoints are looked at
        checkpoint = whole_checkpoint(self.folder, "--resume") if resume else None
        if resume and checkpoint is None:
            console.print(f"{self.folder} has no checkpoint yet: it begins anew")
        self.task = load_task(config.task, config.seed)
        _check_train(self.task, config)
        set_seed(config.seed)  # of the fresh gate and adapters; sampling has keys of its own
        self.step = 0 if checkpoint is None else read_step(checkpoint)
        self.saved = self.step  # updates in the newest checkpoint
        self.logged: int | None = self.step  # updates that the weights have behind them; None in the midst of one
        self.model = _load_model(config, checkpoint, accelerator.device)
        self.provenance = provenance(self.model.settings.base_model, self.model.settings.base_files, self.task)
        if resume:
            check_provenance(self.folder, self.provenance)
        longest = length_limit(config.rollout.max_new_tokens, context_length(self.model))
        self.config = config = dataclasses.replace(
            config, rollout=dataclasses.replace(config.rollout, max_new_tokens=longest)
        )
        self.day = distributed.gather(day_of(self.folder))[0]
        self.dated = pin_date(self.model.tokenizer, self.day)
        if self.dated:
            console.print(f"the chat template writes today's date: in this run and its checkpoints it stays {self.day}")
        _check_top_k(config, self.model)
        _check_memory(config, self.model, longest)
        self.held_out, self.task = hold_out(fitting(self.task, self.model, config), config.keep.problems, config.seed)
        self.model.settings = dataclasses.replace(
            self.model.settings,
            temperature=config.rollout.temperature,
            top_k=config.rollout.top_k,
            max_new_tokens=longest,
            preamble=list(self.task.preamble),
            task=remembered(config.task),
            seed=config.seed,
        )
        with_reference = config.loss.beta != 0 and config.objective == "hrpo"
        if with_reference and checkpoint is None:
            self.model.keep_reference()
        elif with_reference:
            with model_named_by("--resume"):
                self.model.load_reference(trust_remote_code=config.model.trust_remote_code)
        self.sharded: Sharded | None = None
        if config.sharding == "full" and distributed.count() > 1:
            packs_up_to(self.model)
            self.sharded = Sharded(self.model, distributed.count())
        self.optimizer = _make_optimizer(self.model, config)
        if checkpoint is not None:
            load_optimizer(self.optimizer, checkpoint)
        self.never_finite = spoilt(self.model, self.optimizer)  # as a bias of -inf on ids that are no tokens
        self.evaluation()  # whatever is damaged is told before anything is written
        distributed.wait()  # until all have read the folder as it was
        if distributed.first():
            self.lock = self.lock or lock_run(self.folder)
            check_run_folder(self.folder, self.given, resume)  # another process may have begun it, and ended
            self._begin()
        self.accelerator = accelerator_for(self.model.device)
        self.accelerator.configure_memory(sharded=self.sharded is not None)
        self.accelerator.release_memory()  # what loading has left

    def _begin(self) -> None:
        """Write the settings, and cut the logs: what was logged after the checkpoint happens again."""
        logs = {path: lines_until(path, self.step) for path in map(self.folder.joinpath, LOGS) if path.is_file()}
        keep_provenance(self.folder, self.provenance)
        files.write_text(self.folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(self.given), sort_keys=False))
        if self.dated:
            files.write_text(self.folder / DATE_FILE, f"{self.day}\n")
        for path, lines in logs.items():
            files.write_text(path, "".join(line + "\n" for line in lines))
        tidy(self.folder, self.step)

    @property
    def folder(self) -> Path:
        """The run folder, which may have been renamed since the run began.

        Raises:
            StoppedError: it is gone; what is in its place, if anything, is another run.

        """
        if self.lock is None:
            return self.given.run_folder
        place = self.lock.where()
        if place is None:
            raise StoppedError(
                f"the run folder {self.given.run_folder} was deleted or renamed, so the run cannot go on in it; "
                "put it back, then --resume"
            )
        return self.given.run_folder if place == self.lock.place else place

    @property
    def renamed(self) -> str:
        """What to say where the run folder has another name by now; empty where it has not."""
        if self.folder == self.given.run_folder:
            return ""
        return (
            f"the run folder {self.given.run_folder} was renamed to {self.folder}, where all was written since; "
            "give it its name back, then --resume"
        )

    @property
    def exact(self) -> bool:
        """Whether replayed log-probabilities are those sampled, but for the order of sums."""
        return self.model.rounding != torch.bfloat16 and self.config.model.quantization == "none"

    def train_step(self) -> Metrics:
        """Do one update."""
        return self.supervised_step() if self.config.objective == "sft" else self.policy_step()

    def policy_step(self) -> Metrics:
        """Do one update of reinforcement learning: roll out, reward, compare, replay, step."""
        config, start = self.config, time.perf_counter()
        examples = self.batch(self.step)
        rollout = self.roll_out(examples, key=self.step)
        completions = decode(self.model.tokenizer, rollout)
        G = config.rollout.group_size
        rewards, parts, context = self.score(examples, completions, id_lists(rollout))  # (N,)
        advantages = group_advantages(rewards, G, config.loss.advantage_scale).float().to(self.model.device)  # (N,)
        rolled_out = time.perf_counter()
        stats = self.update(rollout, advantages)
        broken = broken_replay(stats, exact=self.exact)
        if broken:
            broken = broken_replay(stats, exact=self.exact, rounded=self.rounding_errors(rollout))
        if broken or stats["skipped"]:
            self.put_aside(broken, rollout, examples, completions, or_none(rewards))
        else:
            self.refuse_spoilt()
        end = time.perf_counter()
        self.step += 1
        self.write_samples(examples[0], completions[:G], rewards, context.extras)
        tokens = int(rollout.completion_mask.sum())
        return {
            **{name: sum(values) / len(values) for name, values in context.metrics.items()},
            "step": self.step,
            **({} if rewards.isnan().all() else {"reward": rewards.nanmean().item()}),
            **({f"reward/{name}": mean for name, mean in parts.items()} if len(self.task.weights) > 1 else {}),
            "signal": signal_share(rewards, G),
            "distinct": distinct_share(rollout.completion_ids, G),
            "format_rate": sum(text.count(DELIMITER) == 1 for text in completions) / len(completions),
            "repeated_delimiter": sum(text.count(DELIMITER) > 1 for text in completions) / len(completions),
            "length": rollout.lengths.float().mean().item(),
            "truncation_rate": rollout.truncated(self.model.eos_token_ids).float().mean().item(),
            "hidden_ratio": rollout.hidden_ratio().item(),
            "entropy": rollout.entropy().item(),
            **stats,
            "tokens": tokens,
            "tokens_per_second": tokens / (end - start),
            "rollout_seconds": rolled_out - start,
            "update_seconds": end - rolled_out,
        }

    def supervised_step(self) -> Metrics:
        """Do one update of supervised fine-tuning: write down, replay, step."""
        start = time.perf_counter()
        examples = self.batch(self.step)
        written = write_down(self.model, self.task, examples, self.config.sft.target)
        nll = self.likelihood_gradients(written)
        stats = self.step_optimizer(nll)
        if stats["skipped"]:
            self.put_aside(None, written, examples, decode(self.model.tokenizer, written))
        else:
            self.refuse_spoilt()
        self.accelerator.release_memory()  # with a policy each rollout does
        self.step += 1
        tokens, seconds = int(written.completion_mask.sum()), time.perf_counter() - start
        return {
            "step": self.step,
            "nll": nll,
            "length": written.lengths.float().mean().item(),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "update_seconds": seconds,
            **stats,
        }

    @together
    def roll_out(self, examples: list[Example], *, key: int | str, max_new_tokens: int | None = None) -> Rollout:
        """Sample group_size completions of each problem; their random numbers depend on (seed, key, b, g) alone."""
        settings, mine = self.config.rollout, distributed.share(len(examples))
        G, model = settings.group_size, self.whole()
        if not mine:
            return _joined(model, None)
        prompts = [self.task.messages(examples[b].question) for b in mine]
        rollout = generate(
            model,
            encode(model.tokenizer, prompts),
            group_size=G,
            max_new_tokens=max_new_tokens or self.model.settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            sample_keys=[sample_key(self.config.seed, key, b, g) for b in mine for g in range(G)],
            max_rows=settings.prompts * G,
            options=EngineOptions(static_shapes=settings.static_shapes),
        )
        return _joined(model, rollout)

    def score(
        self, examples: list[Example], completions: list[str], completion_ids: list[list[int]]
    ) -> tuple[Tensor, dict[str, float], RewardContext]:
        """Return the rewards of the completions, (N,), the mean of each part of them, and what they want to log.

        All groups are of a size. See `hrpo.rewards.score`.

        Raises:
            InputError: a reward has failed, in whichever process; all are ready for the next task then.

        """
        parts = self.shares_of_score(examples, completions, completion_ids)
        for _, _, failure in parts:
            if failure:
                raise InputError(failure)
        values, contexts, _ = zip(*parts, strict=True)
        extras, metrics = dict[str, list[Any]](), dict[str, list[float]]()
        for column in dict.fromkeys(name for context in contexts for name in context.extras):
            lists = [context.extras.get(column, [None] * len(context.completion_ids)) for context in contexts]
            extras[column] = [value for part in lists for value in part]
        for name in dict.fromkeys(name for context in contexts for name in context.metrics):
            metrics[name] = [value for context in contexts for value in context.metrics.get(name, [])]
        rewards, means = combine(self.task, torch.cat(values))
        return rewards, means, RewardContext(completion_ids, extras=extras, metrics=metrics)

    @together
    def shares_of_score(
        self, examples: list[Example], completions: list[str], completion_ids: list[list[int]]
    ) -> list[tuple[Tensor, RewardContext, str]]:
        """Return of each process what the rewards give its share, what they want to log, and what has gone wrong."""
        G, mine = len(completions) // len(examples), distributed.share(len(examples))
        own = slice(mine.start * G, mine.stop * G)
        values, failure = torch.empty(0, len(self.task.weights), dtype=torch.float64), ""
        context = self.reward_context(completion_ids[own])
        try:
            if mine:
                problems = [examples[b] for b in mine for _ in range(G)]
                values = values_of(self.task, problems, completions[own], context)
        except InputError as error:
            failure = str(error)
        return distributed.gather((values, context, failure))

    def reward_context(self, completion_ids: list[list[int]]) -> RewardContext:
        """Return what rewards get to know of completions and of this run."""
        seen = self.step * self.batch_size
        return RewardContext(completion_ids, self.step, self.config.updates, seen / len(self.task.train))

    def update(self, rollout: Rollout, advantages: Tensor) -> Metrics:
        """Learn from a rollout. Nothing is learnt from one with something in it, or in its gradient, that is amiss."""
        if not rollout.finite():
            return {"skipped": 1.0}
        stats = self.gradients(rollout, advantages)
        if broken_replay(stats, exact=self.exact):
            return {**stats, "skipped": 1.0}
        return {**stats, **self.step_optimizer(stats["loss"])}

    @together
    def gradients(self, rollout: Rollout, advantages: Tensor) -> Metrics:
        """Replay the rollout in micro-batches and leave the sum of their gradients in the parameters."""
        config, model = self.config, self.model
        mask = rollout.completion_mask
        if config.loss.mask_truncated:
            mask = mask * ~rollout.truncated(model.eos_token_ids).unsqueeze(1)
        weights = token_weights(mask, config.loss.reduction)  # (N, T), of the whole batch
        G = rollout.group_size
        if not config.loss.beta:  # then a group without a signal has no gradient
            signal = advantages.view(-1, G).any(dim=1).nonzero().flatten().tolist() or [0]
            places = [b * G + g for b in signal for g in range(G)]
            rollout, advantages, weights = rollout.groups(signal), advantages[places], weights[places]
        totals: dict[str, Tensor] = {}
        gaps = [weights.new_zeros(0)]  # between sampled and replayed log-probabilities, of each token
        for part, rows, weight in self.micro_batches(rollout, weights):
            logprobs, reference = self.replay(  # (n, t) each
                part, policy=config.loss.policy, with_reference=config.loss.beta != 0
            )
            loss, stats = hrpo_loss(
                logprobs, reference, advantages[rows], part.completion_mask, beta=config.loss.beta, weights=weight
            )
            self.backward(loss)
            for name, value in {"loss": loss.detach(), **stats}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
            if config.loss.policy == "model":
                gaps.append((logprobs.detach() - part.sample_logprobs).abs()[part.completion_mask.bool()])
        self.sum_gradients()
        result = distributed.add_up({name: value.item() for name, value in totals.items()})
        if config.loss.policy != "model":
            return result
        return {**result, **replay_errors(torch.cat(distributed.gather(torch.cat(gaps))))}

    @together
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

    @together
    def likelihood_gradients(self, written: Rollout) -> float:
        """Return the mean over all tokens of -log p (nats), and leave its gradient in the parameters."""
        weights = token_weights(written.completion_mask, "token")  # (N, T)
        total = torch.zeros((), device=self.model.device)
        for part, _, weight in self.micro_batches(written, weights):
            logprobs, _ = self.replay(part, with_reference=False)
            loss = -(weight * logprobs).sum()
            self.backward(loss)
            total = total + loss.detach()
        self.sum_gradients()
        return distributed.add_up({"nll": total.item()})["nll"]

    def micro_batches(self, rollout: Rollout, weights: Tensor) -> Iterator[tuple[Rollout, slice, Tensor]]:
        """Yield this process's groups in micro-batches, with their rows and the weights of their tokens, (n, t).

        Sharded parameters want equally many everywhere: who has fewer goes through a completion that weighs nothing.
        """
        budget, G = self.token_budget(rollout), rollout.group_size
        mine = distributed.share(len(rollout) // G)
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

    def replay(
        self, rollout: Rollout, *, policy: Policy = "model", with_reference: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Feed a rollout again, see `replay`."""
        run = functools.partial(replay, self.model) if self.sharded is None else self.sharded.replay
        return run(rollout, policy=policy, with_reference=with_reference, recompute=self.recompute(rollout))

    def recompute(self, rollout: Rollout) -> float:
        """Return the share of the model's blocks that are computed anew in the backward pass."""
        if self.config.recompute != "auto":
            return float(self.config.recompute)
        tokens = int(rollout.prompt_mask.sum() + rollout.completion_mask.sum())
        return self.accelerator.checkpointing_share(self.model, tokens)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those that are there."""
        # fully_shard leaves the mean over the processes of what they add
        torch.autograd.backward(loss if self.sharded is None else loss * distributed.count())

    def sum_gradients(self) -> None:
        """Let every process have the gradients of the whole batch; `fully_shard` has added them up already."""
        if self.sharded is None:
            distributed.sum_gradients(self.trained())

    def trained(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @together
    def step_optimizer(self, loss: float) -> Metrics:
        """Clip the gradients, step at this update's learning rates, and forget the gradients.

        Where the loss or a gradient is not finite nothing is done, and the gradients stay for a look.
        """
        settings = self.config.optimizer
        factor = learning_rate_factor(self.step, self.config.updates, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        parameters = self.trained()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        metrics = {"grad_norm": full(norm).item(), "lr": settings.lr * factor, "skipped": 0.0}
        if not math.isfinite(metrics["grad_norm"]) or not math.isfinite(loss):
            return {**metrics, "skipped": 1.0}
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        self.logged = None  # from here on until `log` the weights are those of no update that is known
        self.optimizer.step()
        self.optimizer.zero_grad()
        return metrics

    @together
    def spoilt(self) -> list[str]:
        """Return which weights and second moments are not finite that were so at the start."""
        return [name for name in spoilt(self.model, self.optimizer) if name not in self.never_finite]

    def refuse_spoilt(self) -> None:
        """End the run where its weights are no numbers any more.

        Raises:
            StoppedError: they are not.

        """
        if names := self.spoilt():
            raise StoppedError(
                f"update {self.step + 1} left numbers that are not finite in {', '.join(names)}: the optimizer's state "
                "is damaged, or learning rates are too high (optimizer.lr, optimizer.gate_lr, optimizer.lambda_lr); "
                "nothing of it is saved, and the newest checkpoint is of before"
            )

    def put_aside(
        self,
        broken: str | None,
        rollout: Rollout,
        examples: list[Example],
        completions: list[str],
        rewards: Sequence[float | None] = (),
    ) -> None:
        """Keep the batch of an update that was not taken, say so, and forget its gradients.

        Raises:
            StoppedError: `broken` says why training cannot go on.

        """
        bad = self.not_finite()
        why = broken or f"not finite: {', '.join(bad) if rollout.finite() else 'the logits, while sampling'}"
        facts = {"rewards": list(rewards), "not_finite": bad}
        kept = keep_batch(self.folder, self.step + 1, why, rollout, examples, completions, facts)
        self.forget_gradients()
        if broken:
            if self.step > self.saved:
                self.save()
            raise StoppedError(f"update {self.step + 1} was not taken: {broken}; {kept}")
        console.print(f"warning: update {self.step + 1} was skipped, {why}; {kept}")

    @together
    def forget_gradients(self) -> None:
        """Take no step with the gradients that are there."""
        self.optimizer.zero_grad()

    @together
    def not_finite(self) -> list[str]:
        """Return what is not finite, see `not_finite`."""
        return not_finite(self.model)

    def whole(self) -> HybridCausalLM:
        """Return the model with all of its weights: itself, or a copy where it is sharded."""
        return self.model if self.sharded is None else self.sharded.whole()

    @together
    def gathered(self) -> HybridCausalLM:
        """Return the model with all of its weights to the first process, which alone knows when; see `whole`."""
        return self.whole()

    @together
    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's whole state to the first process."""
        return optimizer_tensors(self.optimizer)

    def token_budget(self, rollout: Rollout) -> int:
        """Return the tokens of a micro-batch."""
        return self.config.token_budget or rollout.whole_groups(*self.accelerator.microbatch_tokens)

    @property
    def batch_size(self) -> int:
        """Problems of an update."""
        return self.config.sft.batch if self.config.objective == "sft" else self.config.rollout.prompts

    def batch(self, step: int) -> list[Example]:
        """Return the problems of an update: each epoch goes through the training problems in an order of its own."""
        config = self.config
        size, B = len(self.task.train), self.batch_size
        places = range(step * B, (step + 1) * B)
        return [self.task.train[_epoch(config.seed, at // size, size)[at % size]] for at in places]

    def save(self) -> Path:
        """Write a checkpoint: the model, its settings, the optimizer's state and the step."""
        self.model.settings = dataclasses.replace(self.model.settings, step=self.step)
        path = self.folder / f"checkpoint-{self.step}"
        with files.new_folder(path, replaces=["*"]) as draft:  # one after the other: each is large
            self.gathered().write_files(draft)
            save_file(self.optimizer_state(), draft / OPTIMIZER_FILE)
            (draft / STATE_FILE).write_text(json.dumps({"step": self.step, "threads": torch.get_num_threads()}) + "\n")
            seal(draft)
        self.saved = self.step
        return path

    def save_unsaved(self) -> Path | None:
        """Save the updates that no checkpoint holds; None where there are none, or what is there is not whole.

        It is not in the midst of an update, nor where only all processes together have the weights and have lost
        each other.
        """
        whole = self.logged == self.step and (self.sharded is None or not distributed.alone())
        return self.save() if whole and self.step > self.saved else None

    def validate(self) -> None:
        """Answer the held-out training problems greedily, and log how many are right; each update once."""
        path = self.folder / VALIDATION_FILE
        if self.held_out and self.step not in scores(self.folder):
            append(path, [{"step": self.step, **summarize(self.held_out_answers())}])

    @together
    def held_out_answers(self) -> list[Answer]:
        """Answer the held-out training problems greedily."""
        return answer_problems(self.whole(), self.task, self.held_out, greedy=True, batch=self.config.eval.batch)

    def evaluation(self) -> dict[str, Any]:
        """Return what has been evaluated so far."""
        path = self.folder / "evaluation.json"
        again = "delete it, and what it held is evaluated again"
        evaluation: dict[str, Any] = files.read_json(path, "--resume", again) if path.is_file() else {}
        try:
            sum(part["greedy"]["problems"] for part in evaluation.values())
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"--resume: {path} is damaged (it holds no evaluation); {again}") from error
        return evaluation

    def evaluated(self, when: str) -> bool:
        """Whether that evaluation is there, and on as many problems as are asked for: a resumed run may ask for others.

        Where none are asked for, one that is there stays.
        """
        problems, found = len(self.task.test[: self.config.eval.problems]), self.evaluation().get(when)
        return found is not None and problems in (0, found["greedy"]["problems"])

    def evaluate(self, when: str) -> dict[str, Any]:
        """Evaluate on the first test problems, and write the numbers and the answers."""
        if not self.task.test[: self.config.eval.problems]:
            return {}
        numbers, answers = self.answers(when)
        for how, part in answers.items():
            rows = "".join(json.dumps(row) + "\n" for row in as_rows(part))
            files.write_text(self.folder / f"answers-{when}-{how}.jsonl", rows)
        evaluation = {**self.evaluation(), when: numbers}
        files.write_text(self.folder / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
        return numbers

    @together
    def answers(self, when: str) -> tuple[dict[str, Any], dict[str, list[Answer]]]:
        """Answer the first test problems; see `evaluate`."""
        config = self.config
        problems = self.task.test[: config.eval.problems]
        model = self.initial() if when == "before" and self.step else self.whole()
        return evaluate(
            model, self.task, problems, seed=config.seed, batch=config.eval.batch, label=f"{when} training:"
        )

    def initial(self) -> HybridCausalLM:
        """Return the model as it was before the first update, made once more."""
        set_seed(self.config.seed)
        model = _load_model(self.config, None, self.model.device)
        model.settings = dataclasses.replace(self.model.settings, step=0)
        return model

    def log(self, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl, without numbers that are not finite."""
        metrics = {
            name: value for name, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)
        }
        append(self.folder / "metrics.jsonl", [metrics])
        self.logged = self.step

    def write_samples(
        self, example: Example, completions: list[str], rewards: Tensor, extras: dict[str, list[Any]]
    ) -> None:
        """Append some completions of the update's first problem to samples.jsonl, with what rewards want logged."""
        rows = [
            {
                **{column: values[place] for column, values in extras.items()},
                "step": self.step,
                "question": example.question,
                "gold": example.gold,
                "completion": text,
                "reward": reward,
            }
            for place, (text, reward) in enumerate(
                zip(completions[:SAMPLES_PER_UPDATE], or_none(rewards), strict=False)
            )
        ]
        append(self.folder / "samples.jsonl", rows)


def _joined(model: HybridCausalLM, rollout: Rollout | None) -> Rollout:
    """Return the rollouts of all processes as one; some may have none."""
    parts = [part for part in distributed.gather(rollout) if part is not None]
    return Rollout.join(parts, pad=(model.eos_token_ids or [0])[0])


def _check_train(task: Task, config: TrainConfig) -> None:
    """Refuse a task with nothing to train on, or without what is to be learnt: solutions, or rewards that work."""
    if not task.train:
        why = "".join(f"; left out {count} {which}" for which, count in task.dropped.items())
        raise InputError(f"task.path: no training problems are left{why}; give a file with other problems")
    if config.objective == "sft":
        for example in task.train if isinstance(task.train, list) else task.train[:1]:
            target_text(example, config.sft.target)
    else:
        score(task, [task.train[0]], [""], RewardContext([[]], updates=config.updates))
    task.assess([""], [task.train[0]], RewardContext([[]], updates=config.updates))


def _check_top_k(config: TrainConfig, model: HybridCausalLM) -> None:
    """Refuse more candidates than tokens, but for the default, which takes at most all."""
    top_k = config.rollout.top_k
    if top_k > model.vocab_size and top_k != RolloutConfig().top_k:
        raise InputError(f"rollout.top_k: the model has {model.vocab_size} tokens, got {top_k}; 0 takes all of them")


def _check_memory(config: TrainConfig, model: HybridCausalLM, max_new_tokens: int) -> None:
    """Refuse more completions at a time than memory holds."""
    rollout, prompts = config.rollout, max(config.rollout.prompts, config.check.prompts)
    if config.objective == "hrpo":
        own = -(-prompts // distributed.count()) * rollout.group_size
        mode = mode_of(config.latent_mode, config.latent.mixed_in)
        with named_by({"group_size": "rollout.group_size"}):
            check_memory(model, mode, own, max_new_tokens, rollout.top_k)


def lora_of(config: ModelConfig) -> Lora | None:
    """Return the adapters that a config asks for; None trains all weights."""
    if config.lora_rank == 0:
        return None
    names = [name.strip() for name in config.lora_targets.split(",")]
    return Lora(config.lora_rank, config.lora_alpha, names[0] if names == ["all-linear"] else names)


def _load_model(config: TrainConfig, checkpoint: Path | None, device: torch.device) -> HybridCausalLM:
    fresh = checkpoint is None
    with model_named_by("model.name" if fresh else "--resume"):
        return HybridCausalLM.from_pretrained(
            checkpoint or model_in(config.model.name),
            lora=lora_of(config.model) if fresh else None,
            dtype=config.model.dtype,
            quantization=config.model.quantization,
            device=device,
            r_min=config.latent.r_min,
            r_max=config.latent.r_max,
            latent_mode=config.latent_mode,
            mixed_in=config.latent.mixed_in,
            new_run=fresh,
            trust_remote_code=config.model.trust_remote_code,
        )


def _make_optimizer(model: HybridCausalLM, config: TrainConfig) -> torch.optim.AdamW:
    """One group a learning rate: the language model or its adapters, the gates' linear layers, Lambda."""
    settings = config.optimizer
    groups = [([p for p in model.lm.parameters() if p.requires_grad], settings.lr)]
    if mode_of(config.latent_mode).gated:
        gate = model.gate
        linears = [*gate.reset_gate.parameters(), *gate.input_gate.parameters()]
        groups += [(linears, settings.gate_lr), ([gate.Lambda], settings.lambda_lr)]
    return torch.optim.AdamW(
        [{"params": parameters, "peak_lr": lr} for parameters, lr in groups],
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, size: int) -> list[int]:
    """Return the order of an epoch."""
    return random.Random(f"order/{seed}/{epoch}").sample(range(size), size)
