"""What a training run would do: settings resolved and validated, nothing loaded, nothing written."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml

from hrpo.common import distributed
from hrpo.common.console import console, print_table
from hrpo.common.errors import InputError
from hrpo.config.schema import TrainConfig, length_limit
from hrpo.models.adapter import require_full_weights
from hrpo.models.context import context_of
from hrpo.models.load import load_config
from hrpo.models.names import resolve
from hrpo.storage.run_dir import check_run_folder, model_in
from hrpo.tasks import check_task
from hrpo.training.estimate import estimate_memory
from hrpo.training.setup import algorithm_of, latent_mode_of
from hrpo.training.validate import check_config


def show_plan(config: TrainConfig, *, resume: bool = False) -> None:
    """Validate a run as training does, short of its model's weights and its data, and print what it would be.

    Raises:
        InputError: a setting cannot be used, or the run folder is taken.

    """
    check_config(config)
    check_task(config.task)
    check_run_folder(config.run_folder, config, resume)
    source = resolve(model_in(config.model.name))
    require_full_weights(Path(source))
    planned = rows(config, source)
    console.print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).rstrip())
    print_table(f"plan of {config.run_folder}; nothing is loaded or written", ["", "planned"], planned)


def rows(config: TrainConfig, source: str) -> list[list[str]]:
    """Return the rows of the plan's table: what, value."""
    rollout, sft = config.rollout, not algorithm_of(config).samples
    completions = config.sft.batch if sft else rollout.prompts_per_step * rollout.group_size
    prompt = str(rollout.max_prompt_tokens) if rollout.max_prompt_tokens else "what the context leaves"
    each = "written solutions" if sft else f"{rollout.prompts_per_step} prompts x {rollout.group_size}"
    lm_config = _lm_config(config, source)
    limit = length_limit(rollout.max_new_tokens, lm_config and context_of(lm_config))
    planned = [
        ["algorithm, latent mode", f"{config.algorithm}, {latent_mode_of(config)}"],
        ["model", source],
        ["task", config.task.name],
        ["processes, sharding", f"{distributed.planned()}, {config.sharding}"],
        ["updates", f"{config.max_steps:,}"],
        ["completions per update", f"{completions} ({each})"],
        ["completions in all", f"{config.max_steps * completions:,}"],
        ["longest prompt, completion (tokens)", f"{prompt}, {limit}"],
    ]
    if lm_config is None:
        return [*planned, ["memory", "unknown: the model's config is not at hand"]]
    count = distributed.planned()
    parts = estimate_memory(config, lm_config, cpu=not torch.cuda.is_available(), processes=count)
    return [
        *planned,
        *([f"memory: {name}", f"{size / 1e9:.2f} GB"] for name, size in parts.items()),
        [f"memory, estimated peak{' of each process' * (count > 1)}", f"{sum(parts.values()) / 1e9:.2f} GB"],
    ]


def _lm_config(config: TrainConfig, source: str) -> Any:
    """Return transformers' config of the model; None where it would have to be downloaded and cannot be."""
    try:
        return load_config(source, config.model.trust_remote_code)
    except InputError as error:
        if isinstance(error.__cause__, OSError) and not Path(source).is_dir():
            return None
        raise
