"""The range of every number in the settings."""

import math

from hrpo.config import TrainConfig
from hrpo.errors import InputError
from hrpo.latent import mode_of
from hrpo.rollout import SHOWN_CANDIDATES
from hrpo.trackers import is_installed

MIN_TEMPERATURE = 1e-6  # far below, logits over it overflow float32
LEAST = {
    "updates": 1,
    "save_every": 1,
    "token_budget": 0,
    "task.shots": 0,
    "model.lora_rank": 0,
    "model.lora_alpha": 1,
    "rollout.prompts": 1,
    "rollout.max_new_tokens": 1,
    "rollout.max_prompt_tokens": 0,
    "rollout.top_k": 0,
    "sft.batch": 1,
    "loss.beta": 0,
    "optimizer.weight_decay": 0,
    "check.prompts": 0,
    "check.patience": 0,
    "check.max_skipped": 1,
    "keep.last": 0,
    "keep.best": 0,
    "keep.problems": 0,
    "eval.problems": 0,
    "eval.batch": 1,
}
RATES = ("lr", "gate_lr", "lambda_lr")  # an AdamW step is as long as its rate: one above 1 leaves nothing of a weight
SHARES = ("beta1", "beta2", "warmup")


def check_config(config: TrainConfig) -> None:
    """Refuse settings that cannot train.

    Raises:
        InputError: names the first one, and what it may be.

    """
    rollout, latent, optimizer = config.rollout, config.latent, config.optimizer
    mode = mode_of(config.latent_mode, latent.mixed_in)
    rules = [
        (rollout.group_size >= 2, f"rollout.group_size: must be at least 2 to compare, got {rollout.group_size}"),
        (
            MIN_TEMPERATURE <= rollout.temperature < math.inf,
            f"rollout.temperature: must be at least {MIN_TEMPERATURE} and finite to sample, got {rollout.temperature}",
        ),
        (is_installed(config.tracker), f"tracker: {config.tracker} is not installed; pip install {config.tracker}"),
        (0 <= config.seed < 2**32, f"seed: must be from 0 to 2^32 - 1, got {config.seed}"),
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
        (
            config.sharding == "none" or config.model.quantization == "none",
            "sharding: quantized weights cannot be sharded; set sharding or model.quantization to none",
        ),
        (
            optimizer.max_grad_norm > 0,
            f"optimizer.max_grad_norm: must be above 0, got {optimizer.max_grad_norm}; .inf does not clip",
        ),
        (
            config.keep.best == 0 or config.keep.problems > 0,
            "keep.best: nothing tells which are best; set keep.problems to how many training problems shall",
        ),
        (
            config.keep.best == 0 or config.keep.last > 0,
            "keep.best: all checkpoints stay while keep.last is 0; set keep.last to how many shall",
        ),
    ]
    for name, least in LEAST.items():
        value = _value(config, name)
        rules.append((least <= value < math.inf, f"{name}: must be at least {least} and finite, got {value}"))
    for name in RATES:
        value = getattr(optimizer, name)
        rules.append((0 <= value <= 1, f"optimizer.{name}: must be from 0 to 1, got {value}"))
    for name in SHARES:
        value = getattr(optimizer, name)
        rules.append((0 <= value < 1, f"optimizer.{name}: must be from 0 to below 1, got {value}"))
    for holds, message in rules:
        if not holds:
            raise InputError(message)


def _value(config: TrainConfig, name: str) -> float:
    """Return a setting by its name, such as rollout.prompts."""
    section, _, field = name.rpartition(".")
    value: float = getattr(getattr(config, section) if section else config, field)
    return value
