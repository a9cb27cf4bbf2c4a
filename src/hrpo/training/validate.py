"""The range of every number in the settings."""

import math
from typing import Any

from hrpo.common.errors import InputError
from hrpo.config.bounds import BATCH, MIN_TEMPERATURE, SEED, SETTINGS, outside_of
from hrpo.config.schema import TrainConfig
from hrpo.data import SHOWN_CANDIDATES
from hrpo.latent import mode_of
from hrpo.tasks import check_task
from hrpo.training.setup import algorithm_of, latent_mode_of
from hrpo.training.trackers import is_installed

RATES = ("lr", "gate_lr", "lambda_lr")  # an AdamW step is as long as its rate: one above 1 leaves nothing of a weight
SHARES = ("beta1", "beta2", "warmup")


def check_config(config: TrainConfig) -> None:
    """Refuse settings that cannot train.

    Raises:
        InputError: names each of them, and what it may be; then also what is wrong with the task's.

    """
    rollout, latent, optimizer = config.rollout, config.latent, config.optimizer
    algorithm_of(config)
    mode = mode_of(latent_mode_of(config), latent.mixed_in, "latent.mode")
    rules = [
        (rollout.group_size >= 2, f"rollout.group_size: must be at least 2 to compare, got {rollout.group_size}"),
        (rollout.group_size <= BATCH, f"rollout.group_size: must be at most {BATCH:,}, got {rollout.group_size}"),
        (
            MIN_TEMPERATURE <= rollout.temperature < math.inf,
            f"rollout.temperature: must be at least {MIN_TEMPERATURE} and finite to sample, got {rollout.temperature}",
        ),
        (0 <= config.seed <= SEED, f"seed: must be from 0 to 2^32 - 1, got {config.seed}"),
        (
            is_installed(config.report_to),
            f"report_to: {config.report_to} is not installed; pip install {config.report_to}",
        ),
        (
            0 < latent.r_min <= latent.r_max < 1,
            f"latent.r_min: needs 0 < r_min <= r_max < 1, got {latent.r_min} and {latent.r_max}",
        ),
        (
            mode.trains,
            f"latent.mode: {latent_mode_of(config)} is training-free: evaluate a model in it; to train, choose another",
        ),
        (
            config.loss.policy != "sampler" or mode.source != "hidden" or rollout.top_k <= SHOWN_CANDIDATES,
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
            config.keep.best == 0 or config.keep.save_total_limit > 0,
            "keep.best: all checkpoints stay while keep.save_total_limit is 0; set it to how many shall",
        ),
    ]
    for name, value in (("loss.beta", config.loss.beta), ("optimizer.weight_decay", optimizer.weight_decay)):
        rules.append((0 <= value < math.inf, f"{name}: must be at least 0 and finite, got {value}"))
    for name in RATES:
        value = getattr(optimizer, name)
        rules.append((0 <= value <= 1, f"optimizer.{name}: must be from 0 to 1, got {value}"))
    for name in SHARES:
        value = getattr(optimizer, name)
        rules.append((0 <= value < 1, f"optimizer.{name}: must be from 0 to below 1, got {value}"))
    values = {name: _value(config, name) for name in SETTINGS}
    wrong = outside_of(SETTINGS, {name: value for name, value in values.items() if value != "auto"})
    wrong += [message for holds, message in rules if not holds]
    if wrong:
        try:
            check_task(config.task)
        except InputError as error:
            wrong.append(str(error))
        raise InputError("; also ".join(wrong))


def _value(config: TrainConfig, name: str) -> Any:
    """Return a setting by its name, such as rollout.prompts_per_step."""
    section, _, field = name.rpartition(".")
    return getattr(getattr(config, section) if section else config, field)
