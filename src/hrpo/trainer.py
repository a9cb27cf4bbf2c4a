"""The training loop: one `train_step` an update, checkpoints, and resuming from them."""

import dataclasses
import json
import math
import os
import random
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrpo import files
from hrpo.advantages import group_advantages, signal_share
from hrpo.advice import distinct_share
from hrpo.config import ModelConfig, RolloutConfig, TrainConfig
from hrpo.errors import InputError
from hrpo.evaluate import as_rows, evaluate
from hrpo.latent import MODES, mode_of
from hrpo.limits import fitting
from hrpo.loss import hrpo_loss, token_weights
from hrpo.model import HybridCausalLM, Lora
from hrpo.prompts import decode, encode
from hrpo.replay import replay
from hrpo.rewards import score
from hrpo.rollout import SHOWN_CANDIDATES, Rollout, generate, sample_key
from hrpo.sft import negative_log_likelihood, write_down
from hrpo.tasks import Example, load_task, remembered
from hrpo.tasks.judge import DELIMITER
from hrpo.techniques import FAST

Metrics = dict[str, float]
OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "trainer.json"
# What a resumed run may change.
CHANGEABLE = {
    "token_budget",
    "recompute",
    "save_every",
    "folder",
    "check.prompts",
    "check.patience",
    "eval.problems",
    "eval.batch",
}
# Tokens of a micro-batch where the config leaves it open, least and most: on accelerators, and on CPUs, where larger
# ones are no faster.
TOKEN_BUDGETS = {False: (16384, 16384), True: (1024, 4096)}
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
        config: every setting.
        resume: go on from the newest checkpoint of the run folder.

    Raises:
        InputError: a setting cannot be used; nothing has been written then.

    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        check_config(config)
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            raise InputError("this version trains in one process; start it without `accelerate launch`")
        self.config, self.folder = config, config.run_folder
        checkpoint = start_or_resume(self.folder, config, resume)
        self.task = load_task(config.task, config.seed)
        if not self.task.train:
            raise InputError("task.path: no training problems are left")
        set_seed(config.seed)  # of the fresh gate and adapters; sampling has keys of its own
        self.step = 0 if checkpoint is None else int(json.loads((checkpoint / STATE_FILE).read_text())["step"])
        self.model = _load_model(config, checkpoint, accelerator.device)
        _check_top_k(config, self.model)
        self.task = fitting(self.task, self.model, config)
        self.model.settings = dataclasses.replace(
            self.model.settings,
            temperature=config.rollout.temperature,
            top_k=config.rollout.top_k,
            max_new_tokens=config.rollout.max_new_tokens,
            preamble=list(self.task.preamble),
            task=remembered(config.task),
            seed=config.seed,
        )
        with_reference = config.loss.beta != 0 and config.objective == "hrpo"
        if with_reference and checkpoint is None:
            self.model.keep_reference()
        elif with_reference:
            self.model.load_reference(trust_remote_code=config.model.trust_remote_code)
        self.optimizer = _make_optimizer(self.model, config)
        if checkpoint is not None:
            _load_optimizer(self.optimizer, checkpoint / OPTIMIZER_FILE)
        _make_folder(self.folder)
        files.write_text(self.folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
        for name in ("metrics.jsonl", "samples.jsonl"):  # what was logged after the checkpoint happens again
            _keep_lines(self.folder / name, self.step)

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
        rewards, parts = score(self.task, [example for example in examples for _ in range(G)], completions)  # (N,)
        advantages = group_advantages(rewards, G, config.loss.advantage_scale).to(self.model.device)  # (N,)
        rolled_out = time.perf_counter()
        stats = self.update(rollout, advantages)
        end = time.perf_counter()
        self.step += 1
        self.write_samples(examples[0], completions[:G], rewards)
        tokens = int(rollout.completion_mask.sum())
        return {
            "step": self.step,
            "reward": rewards.mean().item(),
            **({f"reward/{name}": mean for name, mean in parts.items()} if len(parts) > 1 else {}),
            "signal": signal_share(rewards, G),
            "distinct": distinct_share(rollout.completion_ids, G),
            "format_rate": sum(text.count(DELIMITER) == 1 for text in completions) / len(completions),
            "length": rollout.lengths.float().mean().item(),
            "truncation_rate": rollout.truncated(self.model.eos_token_ids).float().mean().item(),
            "hidden_ratio": rollout.hidden_ratio().item(),
            **stats,
            "tokens": tokens,
            "tokens_per_second": tokens / (end - start),
            "rollout_seconds": rolled_out - start,
            "update_seconds": end - rolled_out,
        }

    def supervised_step(self) -> Metrics:
        """Do one update of supervised fine-tuning: write down, replay, step."""
        start = time.perf_counter()
        written = write_down(self.model, self.task, self.batch(self.step), self.config.sft.target)
        nll = negative_log_likelihood(self.model, written, self.token_budget(written), recompute=self.config.recompute)
        norm = self.step_optimizer()
        self.step += 1
        tokens, seconds = int(written.completion_mask.sum()), time.perf_counter() - start
        return {
            "step": self.step,
            "nll": nll,
            "length": written.lengths.float().mean().item(),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "update_seconds": seconds,
            **norm,
        }

    def roll_out(self, examples: list[Example], *, key: int | str, max_new_tokens: int | None = None) -> Rollout:
        """Sample group_size completions of each problem; their random numbers depend on (seed, key, b, g) alone."""
        settings, prompts = self.config.rollout, [self.task.messages(example.question) for example in examples]
        G = settings.group_size
        return generate(
            self.model,
            encode(self.model.tokenizer, prompts),
            group_size=G,
            max_new_tokens=max_new_tokens or settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            sample_keys=[sample_key(self.config.seed, key, b, g) for b in range(len(examples)) for g in range(G)],
            max_rows=settings.prompts * G,
            techniques=dataclasses.replace(FAST, static_shapes=settings.static_shapes),
        )

    def update(self, rollout: Rollout, advantages: Tensor) -> Metrics:
        """Learn from a rollout."""
        return {**self.gradients(rollout, advantages), **self.step_optimizer()}

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
        mismatch = torch.zeros((), device=model.device)
        for first, last in rollout.micro_batches(self.token_budget(rollout)):
            part = rollout.select(first, last)
            logprobs, reference = replay(  # (n, t) each
                model,
                part,
                policy=config.loss.policy,
                with_reference=config.loss.beta != 0,
                recompute=config.recompute,
            )
            loss, stats = hrpo_loss(
                logprobs,
                reference,
                advantages[first:last],
                part.completion_mask,
                beta=config.loss.beta,
                weights=weights[first:last, : logprobs.shape[1]],
            )
            torch.autograd.backward(loss)
            for name, value in {"loss": loss.detach(), **stats}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
            if config.loss.policy == "model":
                mismatch = torch.maximum(mismatch, (logprobs.detach() - part.sample_logprobs).abs().max())
        result = {name: value.item() for name, value in totals.items()}
        if config.loss.policy == "model":
            result["replay_error"] = mismatch.item()
        return result

    def step_optimizer(self) -> Metrics:
        """Clip the gradients, step at this update's learning rates, and forget the gradients."""
        settings = self.config.optimizer
        factor = learning_rate_factor(self.step, self.config.updates, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"grad_norm": norm.item(), "lr": settings.lr * factor}

    def token_budget(self, rollout: Rollout) -> int:
        """Return the tokens of a micro-batch."""
        bounds = TOKEN_BUDGETS[self.model.device.type == "cpu"]
        return self.config.token_budget or rollout.whole_groups(*bounds)

    def batch(self, step: int) -> list[Example]:
        """Return the problems of an update: each epoch goes through the training problems in an order of its own."""
        config = self.config
        size = len(self.task.train)
        B = config.sft.batch if config.objective == "sft" else config.rollout.prompts
        places = range(step * B, (step + 1) * B)
        return [self.task.train[_epoch(config.seed, at // size, size)[at % size]] for at in places]

    def save(self) -> Path:
        """Write a checkpoint: the model, its settings, the optimizer's state and the step."""
        self.model.settings = dataclasses.replace(self.model.settings, step=self.step)
        path = self.folder / f"checkpoint-{self.step}"
        with files.new_folder(path) as draft:
            self.model.write_files(draft)
            save_file(_optimizer_tensors(self.optimizer), draft / OPTIMIZER_FILE)
            (draft / STATE_FILE).write_text(json.dumps({"step": self.step}) + "\n")
        return path

    def evaluation(self) -> dict[str, Any]:
        """Return what has been evaluated so far."""
        path = self.folder / "evaluation.json"
        evaluation: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return evaluation

    def evaluate(self, when: str) -> dict[str, Any]:
        """Evaluate on the first test problems, and write the numbers and the answers."""
        config = self.config
        problems = self.task.test[: config.eval.problems]
        if not problems:
            return {}
        numbers, answers = evaluate(
            self.model, self.task, problems, seed=config.seed, batch=config.eval.batch, label=f"{when} training:"
        )
        for how, part in answers.items():
            rows = "".join(json.dumps(row) + "\n" for row in as_rows(part))
            files.write_text(self.folder / f"answers-{when}-{how}.jsonl", rows)
        evaluation = {**self.evaluation(), when: numbers}
        files.write_text(self.folder / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
        return numbers

    def log(self, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl."""
        _append(self.folder / "metrics.jsonl", [metrics])

    def write_samples(self, example: Example, completions: list[str], rewards: Tensor) -> None:
        """Append some completions of the update's first problem to samples.jsonl."""
        rows = [
            {
                "step": self.step,
                "question": example.question,
                "gold": example.gold,
                "completion": text,
                "reward": reward,
            }
            for text, reward in zip(completions[:SAMPLES_PER_UPDATE], rewards.tolist(), strict=False)
        ]
        _append(self.folder / "samples.jsonl", rows)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run folder with the most updates; None without any."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def model_in(name: str) -> str:
    """Return the newest checkpoint of a run folder, and any other model's name as it is."""
    newest = newest_checkpoint(Path(name))
    if newest is None and (Path(name) / "config.yaml").is_file():
        raise InputError(f"model.name: the run {name} has no checkpoint yet")
    return str(newest or name)


def check_config(config: TrainConfig) -> None:
    """Refuse settings that cannot train."""
    rollout, latent, warmup = config.rollout, config.latent, config.optimizer.warmup
    mode = mode_of(config.latent_mode, latent.mixed_in)
    rules = [
        (config.updates >= 1, f"updates: must be at least 1, got {config.updates}"),
        (config.save_every >= 1, f"save_every: must be at least 1, got {config.save_every}"),
        (config.eval.batch >= 1, f"eval.batch: must be at least 1, got {config.eval.batch}"),
        (config.eval.problems >= 0, f"eval.problems: must be at least 0, got {config.eval.problems}"),
        (config.sft.batch >= 1, f"sft.batch: must be at least 1, got {config.sft.batch}"),
        (rollout.prompts >= 1, f"rollout.prompts: must be at least 1, got {rollout.prompts}"),
        (rollout.group_size >= 2, f"rollout.group_size: must be at least 2 to compare, got {rollout.group_size}"),
        (rollout.max_new_tokens >= 1, f"rollout.max_new_tokens: must be at least 1, got {rollout.max_new_tokens}"),
        (
            rollout.max_prompt_tokens >= 0,
            f"rollout.max_prompt_tokens: must be at least 0, got {rollout.max_prompt_tokens}",
        ),
        (config.check.prompts >= 0, f"check.prompts: must be at least 0, got {config.check.prompts}"),
        (config.check.patience >= 0, f"check.patience: must be at least 0, got {config.check.patience}"),
        (rollout.temperature > 0, f"rollout.temperature: must be above 0, got {rollout.temperature}"),
        (rollout.top_k >= 0, f"rollout.top_k: must be at least 0, got {rollout.top_k}"),
        (config.token_budget >= 0, f"token_budget: must be at least 0, got {config.token_budget}"),
        (config.seed >= 0, f"seed: must be at least 0, got {config.seed}"),
        (config.task.shots >= 0, f"task.shots: must be at least 0, got {config.task.shots}"),
        (config.model.lora_rank >= 0, f"model.lora_rank: must be at least 0, got {config.model.lora_rank}"),
        (
            0 < latent.r_min <= latent.r_max < 1,
            f"latent.r_min: needs 0 < r_min <= r_max < 1, got {latent.r_min} and {latent.r_max}",
        ),
        (
            mode.trains,
            f"latent.mode: {config.latent_mode} is training-free: evaluate a model in it; to train, choose another",
        ),
        (
            config.loss.policy != "sampler" or mode.latent != "hidden" or rollout.top_k <= SHOWN_CANDIDATES,
            f"loss.policy: sampler needs all candidates, of which runs on hidden states keep {SHOWN_CANDIDATES}; "
            f"set rollout.top_k to at most that, or 0",
        ),
        (0 <= warmup < 1, f"optimizer.warmup: must be from 0 to below 1, got {warmup}"),
    ]
    for holds, message in rules:
        if not holds:
            raise InputError(message)


def _check_top_k(config: TrainConfig, model: HybridCausalLM) -> None:
    """Refuse more candidates than tokens, but for the default, which takes at most all."""
    top_k = config.rollout.top_k
    if top_k > model.vocab_size and top_k != RolloutConfig().top_k:
        raise InputError(f"rollout.top_k: the model has {model.vocab_size} tokens, got {top_k}; 0 takes all of them")


def start_or_resume(folder: Path, config: TrainConfig, resume: bool) -> Path | None:
    """Return the checkpoint to go on from, None to start anew."""
    config_file = folder / "config.yaml"
    if not resume:
        if config_file.exists():
            raise InputError(f"name: {folder} is a run already; give --name another name, or --resume to go on with it")
        return None
    if not config_file.exists():
        raise InputError(f"--resume: there is no run {folder}")
    before, now = yaml.safe_load(config_file.read_text()), dataclasses.asdict(config)
    changed = sorted(set(differences(before, now)) - CHANGEABLE)
    if changed:
        raise InputError(f"--resume: {', '.join(changed)} differ from {config_file}; a run keeps its settings")
    return newest_checkpoint(folder)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder: cannot make {folder} ({error.strerror}); name another --folder") from error


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of the settings, dotted, in which two nested dictionaries differ."""
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield prefix + key


def lora_of(config: ModelConfig) -> Lora | None:
    """Return the adapters that a config asks for; None trains all weights."""
    if config.lora_rank == 0:
        return None
    names = [name.strip() for name in config.lora_targets.split(",")]
    return Lora(config.lora_rank, config.lora_alpha, names[0] if names == ["all-linear"] else names)


def _load_model(config: TrainConfig, checkpoint: Path | None, device: torch.device) -> HybridCausalLM:
    fresh = checkpoint is None
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
    if MODES[config.latent_mode].gated:
        gate = model.gate
        linears = [*gate.reset_gate.parameters(), *gate.input_gate.parameters()]
        groups += [(linears, settings.gate_lr), ([gate.Lambda], settings.lambda_lr)]
    return torch.optim.AdamW(
        [{"params": parameters, "peak_lr": lr} for parameters, lr in groups],
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state, flat: "INDEX.NAME" -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.contiguous() for index, part in state.items() for name, value in part.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, size: int) -> list[int]:
    """Return the order of an epoch."""
    return random.Random(f"order/{seed}/{epoch}").sample(range(size), size)


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _keep_lines(path: Path, step: int) -> None:
    """Drop the lines after an update."""
    if path.is_file():
        whole = path.read_text().split("\n")[:-1]  # a kill may have cut the last line
        lines = [line for line in whole if json.loads(line)["step"] <= step]
        files.write_text(path, "".join(line + "\n" for line in lines))
