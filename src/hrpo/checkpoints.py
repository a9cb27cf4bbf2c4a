"""The folder of a run: its settings, its checkpoints, its logs, and how a resumed run goes on from them."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hrpo import files
from hrpo.config import TrainConfig
from hrpo.errors import InputError
from hrpo.sharding import as_sharded, full

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "trainer.json"
LOGS = ("metrics.jsonl", "samples.jsonl")
# What a resumed run may change.
CHANGEABLE = {
    "token_budget",
    "recompute",
    "sharding",
    "save_every",
    "folder",
    "check.prompts",
    "check.patience",
    "check.max_skipped",
    "eval.problems",
    "eval.batch",
}


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run folder with the most updates; None without any."""
    found = [path for path in folder.glob("checkpoint-*/") if path.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def model_in(name: str) -> str:
    """Return the newest checkpoint of a run folder, and any other model's name as it is."""
    newest = newest_checkpoint(Path(name))
    if newest is None and (Path(name) / "config.yaml").is_file():
        raise InputError(f"model.name: the run {name} has no checkpoint yet")
    return str(newest or name)


def start_or_resume(folder: Path, config: TrainConfig, resume: bool) -> Path | None:
    """Return the checkpoint to go on from, None to start anew."""
    files.check_writable(folder, "folder")
    config_file = folder / "config.yaml"
    if not resume:
        if config_file.exists():
            raise InputError(f"name: {folder} is a run already; give --name another name, or --resume to go on with it")
        return None
    if not config_file.exists():
        raise InputError(f"--resume: there is no run {folder}; leave --resume out to start it")
    changed = changed_settings(_read_config(config_file), config)
    if changed:
        raise InputError(
            f"--resume: {', '.join(changed)} differ from {config_file}; give what it says, or --name for another run"
        )
    return newest_checkpoint(folder)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"--resume: {path} is damaged ({error}); start another run, --name") from error
    if not isinstance(config, dict):
        raise InputError(f"--resume: {path} is damaged (it holds no settings); start another run, --name")
    return config


def read_step(checkpoint: Path) -> int:
    """Return how many updates a checkpoint has behind it."""
    state = files.read_json(checkpoint / STATE_FILE, "--resume", _go_back(checkpoint))
    try:
        return int(state["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--resume: {checkpoint / STATE_FILE} has no step; {_go_back(checkpoint)}") from error


def _go_back(checkpoint: Path) -> str:
    return f"delete {checkpoint} to go on from the one before"


def changed_settings(before: dict[str, Any], config: TrainConfig) -> list[str]:
    """Return the names of the settings that are not those of a run, but for those that a run may change.

    A setting that the run did not know yet had what is now its default.
    """
    known = _filled(before, dataclasses.asdict(TrainConfig()))
    return sorted(set(differences(known, dataclasses.asdict(config))) - CHANGEABLE)


def _filled(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **settings}
    for name, default in defaults.items():
        # not within rewards: what they hold are names of the user's own
        if isinstance(default, dict) and isinstance(filled[name], dict) and name != "rewards":
            filled[name] = _filled(filled[name], default)
    return filled


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of the settings, dotted, in which two nested dictionaries differ."""
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield prefix + key


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state, flat: "INDEX.NAME" -> tensor, gathered where it is sharded."""
    state = optimizer.state_dict()["state"]
    flat = {f"{index}.{name}": value for index, part in state.items() for name, value in part.items()}
    return {name: full(value).contiguous() for name, value in flat.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Give an optimizer the state that a checkpoint kept."""
    state: dict[int, dict[str, Tensor]] = {}
    path = checkpoint / OPTIMIZER_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"--resume: {path} is damaged ({error}); {_go_back(checkpoint)}") from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value if name == "step" else as_sharded(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a JSONL file, and see them on the disk."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def lines_until(path: Path, step: int) -> list[str]:
    """Return the lines up to an update."""
    lines = path.read_text().split("\n")[:-1]  # a kill may have cut the last line
    try:
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--resume: {path} is damaged ({error}); delete its lines without a step") from error
