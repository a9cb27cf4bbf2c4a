"""What a training run would do: settings resolved and validated, nothing loaded, nothing written."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from hrpo.common import distributed
from hrpo.common.console import console, print_table
from hrpo.common.errors import InputError
from hrpo.common.memory import total_memory
from hrpo.config.schema import RolloutConfig, TrainConfig, length_limit
from hrpo.models.adapter import require_full_weights
from hrpo.models.context import context_of
from hrpo.models.load import load_config
from hrpo.models.names import resolve
from hrpo.storage.run_dir import check_run_folder, model_in
from hrpo.tasks import check_task
from hrpo.training.estimate import estimate_memory
from hrpo.training.setup import algorithm_of, latent_of
from hrpo.training.validate import check_config


def show_plan(config: TrainConfig, *, resume: bool = False) -> None:
    """Validate a run as training does, short of its model's weights and its data, and print what it would be.

    Raises:
        InputError: a setting cannot be used, or the run folder is taken.

    """
    check_config(config)
    check_task(config.task)
    check_run_folder(config.run_folder, dataclasses.asdict(config), resume)
    source = resolve(model_in(config.model.name))
    require_full_weights(Path(source))
    algorithm, rollout = algorithm_of(config.algorithm), config.rollout
    latent = latent_of(config.algorithm, config.latent)
    lm_config = _lm_config(source, config.model.trust_remote_code)
    memory = lm_config and estimate_memory(
        lm_config,
        config.model,
        latent,
        rollout,
        reference=algorithm.of(config.loss).beta != 0,
        max_tokens_per_microbatch=config.max_tokens_per_microbatch,
        gradient_checkpointing=config.gradient_checkpointing,
        cpu=not torch.cuda.is_available(),
        memory=total_memory(torch.device("cuda")) if torch.cuda.is_available() else 0,
        processes=distributed.planned(),
        sharding=config.sharding,
    )
    prompts, group = (rollout.prompts_per_step, rollout.group_size) if algorithm.samples else (config.sft.batch, 1)
    planned = [
        ["algorithm, latent mode", f"{config.algorithm}, {latent.mode}"],
        ["model", source],
        ["task", config.task.name],
        ["processes, sharding", f"{distributed.planned()}, {config.sharding}"],
        ["updates", f"{config.max_steps:,}"],
        ["completions per update", _completions(prompts, group, written=not algorithm.samples)],
        ["completions in all", f"{config.max_steps * prompts * group:,}"],
        ["longest prompt, completion (tokens)", _longest(rollout, lm_config)],
    ]
    console.print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).rstrip())
    title = f"plan of {config.run_folder}; nothing is loaded or written"
    print_table(title, ["", "planned"], [*planned, *_memory_rows(memory, distributed.planned())])


def _completions(prompts: int, group: int, *, written: bool) -> str:
    each = "written solutions" if written else f"{prompts} prompts x {group}"
    return f"{prompts * group} ({each})"


def _longest(rollout: RolloutConfig, lm_config: Any) -> str:
    prompt = str(rollout.max_prompt_tokens) if rollout.max_prompt_tokens else "what the context leaves"
    return f"{prompt}, {length_limit(rollout.max_new_tokens, lm_config and context_of(lm_config))}"


def _memory_rows(parts: Mapping[str, int] | None, processes: int) -> list[list[str]]:
    """Return the rows about memory, from bytes by what they are for."""
    if parts is None:
        return [["memory", "unknown: the model's config is not at hand"]]
    return [
        *([f"memory: {name}", f"{size / 1e9:.2f} GB"] for name, size in parts.items()),
        [f"memory, estimated peak{' of each process' * (processes > 1)}", f"{sum(parts.values()) / 1e9:.2f} GB"],
    ]


def _lm_config(source: str, trust_remote_code: bool) -> Any:
    """Return transformers' config of the model; None where it would have to be downloaded and cannot be."""
    try:
        return load_config(source, trust_remote_code)
    except InputError as error:
        if isinstance(error.__cause__, OSError) and not Path(source).is_dir():
            return None
        raise
