"""From settings to a trainer: the model, its optimizer, the algorithm and the task."""

import dataclasses
import functools
from pathlib import Path

import torch

from hrpo.algorithms import ALGORITHMS, Algorithm
from hrpo.common import distributed
from hrpo.common.errors import InputError, model_named_by, named_by
from hrpo.config.schema import LatentConfig, ModelConfig, OptimizerConfig, RolloutConfig, Target, TrainConfig
from hrpo.data import SamplingParams
from hrpo.engine.interface import EngineOptions
from hrpo.engine.packing_probe import packs_up_to
from hrpo.engine.request import check_memory
from hrpo.engines import engine_of
from hrpo.latent import mode_of
from hrpo.model import HybridCausalLM, Lora
from hrpo.rewards import score
from hrpo.sft import target_text, teacher_forced_rollout
from hrpo.storage.run_dir import model_in
from hrpo.tasks import Task, remembered
from hrpo.tasks.base import RewardContext
from hrpo.trainer import Settings, Trainer
from hrpo.training.fsdp import Sharded


def algorithm_of(name: str) -> type[Algorithm]:
    """Return an algorithm by name.

    Raises:
        InputError: there is none of this name.

    """
    if name not in ALGORITHMS:
        raise InputError("algorithm", f"must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    return ALGORITHMS[name]


def make_trainer(config: TrainConfig, model: HybridCausalLM, task: Task) -> Trainer:
    """Return the trainer of a run.

    Args:
        config: of the run; its length limit of completions is a number.
        model: with its reference; its settings are set to those of the run.
        task: without the problems that are left out or held out.

    """
    algorithm, rollout = algorithm_of(config.algorithm).of(config.loss), config.rollout
    assert rollout.max_new_tokens != "auto"
    model.settings = dataclasses.replace(
        model.settings,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        max_new_tokens=rollout.max_new_tokens,
        preamble=list(task.preamble),
        task=remembered(config.task),
        seed=config.seed,
    )
    sharded = None
    if config.sharding == "fsdp" and distributed.count() > 1:
        packs_up_to(model)  # tried while the weights are whole
        sharded = Sharded(model, distributed.count())
    optimizer = make_optimizer(model, config.optimizer)
    settings = Settings(
        problems=rollout.prompts_per_step if algorithm.samples else config.sft.batch,
        group_size=rollout.group_size if algorithm.samples else 1,
        sampling=SamplingParams(rollout.temperature, rollout.top_k, rollout.max_new_tokens),
        mode=mode_of(model.settings.latent_mode, model.settings.mixed_in),
        policy=config.loss.policy if algorithm.samples else "model",
        mask_truncated=config.loss.mask_truncated and algorithm.samples,
        max_tokens=config.max_tokens_per_microbatch,
        recompute=None if config.gradient_checkpointing == "auto" else float(config.gradient_checkpointing),
        max_steps=config.max_steps,
        warmup=config.optimizer.warmup,
        max_grad_norm=config.optimizer.max_grad_norm,
        seed=config.seed,
        exact=model.rounding != torch.bfloat16 and config.model.quantization == "none",
    )
    rows = rollout.prompts_per_step * rollout.group_size
    static = None if rollout.static_shapes == "auto" else rollout.static_shapes
    engine = engine_of(rollout.engine)(EngineOptions(static_shapes=static, torch_compile=rollout.torch_compile), rows)
    write = functools.partial(teacher_forced_rollout, model, task, target=config.sft.target)
    return Trainer(model, task, algorithm, optimizer, engine, settings, write=write, sharded=sharded)


def load_model(
    config: ModelConfig, latent: LatentConfig, checkpoint: Path | None, device: torch.device
) -> HybridCausalLM:
    """Return the model of a checkpoint, or of a run that begins; `latent` is what `latent_of` returns."""
    fresh = checkpoint is None
    with model_named_by("model.name" if fresh else "--resume"):
        return HybridCausalLM.from_pretrained(
            checkpoint or model_in(config.name),
            lora=lora_of(config) if fresh else None,
            dtype=config.dtype,
            quantization=config.quantization,
            device=device,
            r_min=latent.r_min,
            r_max=latent.r_max,
            latent_mode=latent.mode,
            mixed_in=latent.mixed_in,
            new_run=fresh,
            trust_remote_code=config.trust_remote_code,
        )


def latent_of(algorithm: str, latent: LatentConfig) -> LatentConfig:
    """Return what is fed while the model thinks; written solutions are tokens alone."""
    return latent if algorithm_of(algorithm).samples else dataclasses.replace(latent, mode="discrete")


def keep_reference(model: HybridCausalLM, *, resumed: bool, trust_remote_code: bool) -> None:
    """Let the model keep its reference: itself as it is now, or, resumed, as it was when the run began."""
    if not resumed:
        model.keep_reference()
        return
    with model_named_by("--resume"):
        model.load_reference(trust_remote_code=trust_remote_code)


def lora_of(config: ModelConfig) -> Lora | None:
    """Return the adapters that a config asks for; None trains all weights."""
    if config.lora_rank == 0:
        return None
    names = [name.strip() for name in config.lora_targets.split(",")]
    return Lora(config.lora_rank, config.lora_alpha, names[0] if names == ["all-linear"] else names)


def make_optimizer(model: HybridCausalLM, settings: OptimizerConfig) -> torch.optim.AdamW:
    """One group a learning rate: the language model or its adapters, the gates' linear layers, Lambda."""
    groups = [([p for p in model.lm.parameters() if p.requires_grad], settings.lr)]
    if mode_of(model.settings.latent_mode).gated:
        gate = model.gate
        linears = [*gate.reset_gate.parameters(), *gate.input_gate.parameters()]
        groups += [(linears, settings.gate_lr), ([gate.Lambda], settings.lambda_lr)]
    return torch.optim.AdamW(
        [{"params": parameters, "peak_lr": lr} for parameters, lr in groups],
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )


def check_train(task: Task, updates: int, target: Target | None) -> None:
    """Refuse a task with nothing to train on, or without what is to be learnt: solutions, or rewards that work.

    Args:
        task: all of it.
        updates: of the run, which rewards get to know.
        target: what of a solution is learnt to write; None where completions are sampled.

    Raises:
        InputError: it is such a task.

    """
    if not task.train:
        why = "".join(f"; left out {count} {which}" for which, count in task.dropped.items())
        raise InputError("task.path", f"no training problems are left{why}", "give a file with other problems")
    if target is None:
        score(task, [task.train[0]], [""], RewardContext([[]], updates=updates))
    else:
        for example in task.train if isinstance(task.train, list) else task.train[:1]:
            target_text(example, target)
    task.assess([""], [task.train[0]], RewardContext([[]], updates=updates))


def check_fit(model: HybridCausalLM, top_k: int, completions: int, max_new_tokens: int) -> None:
    """Refuse more candidates than the model has tokens, but for the default, or more completions than memory holds.

    Args:
        model: in the latent mode of the run.
        top_k: candidates.
        completions: sampled at once in a process, at most; 0 where none are.
        max_new_tokens: length limit of a completion.

    Raises:
        InputError: there are more.

    """
    if top_k > model.vocab_size and top_k != RolloutConfig().top_k:
        raise InputError(
            "rollout.top_k", f"the model has {model.vocab_size} tokens, got {top_k}", "0 takes all of them"
        )
    if completions:
        mode = mode_of(model.settings.latent_mode, model.settings.mixed_in)
        with named_by({"group_size": "rollout.group_size"}):
            check_memory(model, mode, completions, max_new_tokens, top_k)
