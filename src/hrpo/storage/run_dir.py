"""The folder of a run: its settings, its checkpoints, its logs, and how a resumed run goes on from them."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hrpo.common import distributed, files
from hrpo.common.distributed import as_sharded, full
from hrpo.common.errors import InputError
from hrpo.common.locks import Lock
from hrpo.common.output import warn
from hrpo.config.bounds import COUNT
from hrpo.config.load import parse
from hrpo.config.old_names import line_about, say_once, with_new_names
from hrpo.config.schema import TrainConfig

OPTIMIZER_FILE, STATE_FILE, SUMS_FILE = "optimizer.safetensors", "trainer.json", "SHA256SUMS"
TRAINING_FILES = (OPTIMIZER_FILE, STATE_FILE, SUMS_FILE)  # of no use to those who only want the model
ADAMW = {"step", "exp_avg", "exp_avg_sq"}  # what it keeps of each parameter
VALIDATION_FILE = "validation.jsonl"
LOGS = ("metrics.jsonl", "samples.jsonl", VALIDATION_FILE)
# What a resumed run may change.
CHANGEABLE = {
    "max_tokens_per_microbatch",
    "gradient_checkpointing",
    "sharding",
    "save_every",
    "output_dir",
    "report_to",
    "check.prompts",
    "check.patience",
    "check.max_skipped",
    "eval.problems",
    "eval.batch",
    "keep.save_total_limit",
    "keep.best",
}


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a run folder by their number of updates, the most first."""
    found = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*/")}
    return {int(step): found[step] for step in sorted(filter(str.isdecimal, found), key=int, reverse=True)}


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run folder with the most updates, whole or not; None without any."""
    return next(iter(checkpoints(folder).values()), None)


def latest_valid_checkpoint(folder: Path, field: str) -> Path | None:
    """Return the newest checkpoint whose files are what was written, and say which are not; None without any.

    Raises:
        InputError: there are some, and none is whole: to start anew would throw away what was logged. Names `field`.

    """
    damaged = list[str]()
    for path in checkpoints(folder).values():
        if (problem := verify(path)) is None:
            for line in damaged:
                warn(f"hrpo: {line}; going back to {path.name}")
            return path
        damaged.append(f"{path} is damaged ({problem})")
    if damaged:
        raise InputError(field, f"{', '.join(damaged)}, and there is no other", "put one back, or delete them all")
    return None


def model_in(name: str) -> str:
    """Return the newest whole checkpoint of a run folder, and any other model's name as it is."""
    newest = latest_valid_checkpoint(Path(name), "model.name")
    if newest is None and (Path(name) / "config.yaml").is_file():
        raise InputError("model.name", f"the run {name} has no checkpoint yet")
    return str(newest or name)


def write_checksums(checkpoint: Path) -> None:
    """Write the sha256 of every file, as `sha256sum --check` reads them; trainer.json's is last, to tell a cut list."""
    ordered = sorted(_files(checkpoint) - {SUMS_FILE}, key=lambda name: (name == STATE_FILE, name))
    lines = [f"{_sha256(checkpoint / name)}  {name}\n" for name in ordered]
    (checkpoint / SUMS_FILE).write_text("".join(lines))


def verify(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint; None where every file is what was written."""
    try:
        sums = dict(line.split("  ", 1)[::-1] for line in (checkpoint / SUMS_FILE).read_text().splitlines())
    except (OSError, ValueError) as error:
        return f"{SUMS_FILE}: {error}"
    there = _files(checkpoint)  # a name in the list may be anything, such as /dev/zero
    changed = (name for name, sha256 in sums.items() if name not in there or _sha256(checkpoint / name) != sha256)
    if (first := next(changed, None)) is not None:
        return f"{first} is not as {SUMS_FILE} has it"
    return None if STATE_FILE in sums else f"{SUMS_FILE} is cut"


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clean_run_dir(folder: Path, step: int) -> None:
    """Clear away what a killed run left half-written, and set aside the damaged checkpoints after the one taken."""
    for path in (*folder.glob("checkpoint-*.tmp"), *folder.glob("checkpoint-*.replaced")):
        shutil.rmtree(path)
    for later, path in checkpoints(folder).items():
        if later > step:
            aside = path.with_name(path.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def check_run_folder(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that cannot be a new run's, or the one to go on with; `settings` are all of the run.

    Raises:
        InputError: it is a run already, or none; its settings are others, or damaged.

    """
    files.check_writable(folder, "output_dir")
    config_file = folder / "config.yaml"
    if not resume:
        if config_file.exists():
            raise InputError(
                "name", f"{folder} is a run already", "give --name another name, or --resume to go on with it"
            )
        return
    if not config_file.exists():
        raise InputError("--resume", f"there is no run {folder}", "leave --resume out to start it")
    changed = changed_settings(_read_config(config_file), settings)
    if changed:
        raise InputError(
            "--resume",
            f"{', '.join(changed)} differ from {config_file}",
            "give what it says, or --name for another run",
        )


def lock_run(folder: Path) -> Lock:
    """Keep other processes from training a run; its folder is made if need be.

    Raises:
        InputError: another process trains it.

    """
    refused = InputError("name", f"another process trains {folder}", "wait for it, or give another --name")
    return Lock.of(folder, refused)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise InputError("--resume", f"{path} is damaged ({error})", "start another run, --name") from error
    if not isinstance(config, dict):
        raise InputError("--resume", f"{path} is damaged (it holds no settings)", "start another run, --name")
    settings, notes = with_new_names(config)
    if notes and distributed.is_main_process():
        say_once(f"hrpo: {path}: {line_about(notes)}")
    found: dict[str, Any] = settings
    return found


def read_step(checkpoint: Path) -> int:
    """Return how many updates a checkpoint has behind it, and say where those were computed on other threads."""
    state = files.read_json(checkpoint / STATE_FILE, "--resume", _go_back(checkpoint))
    here = torch.get_num_threads()
    try:
        if (there := int(state.get("threads", here))) != here:
            warn(f"hrpo: it ran on {there} threads, now {here}: the same numbers but for rounding")
        step = int(state["step"])
        if not 0 <= step <= COUNT:
            raise ValueError(step)
        return step
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError("--resume", f"{checkpoint / STATE_FILE} has no step", _go_back(checkpoint)) from error


def _go_back(checkpoint: Path) -> str:
    return f"delete {checkpoint} to go on from the one before"


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of the settings that are not those of a run, but for those that a run may change.

    A setting that the run did not know yet had what is now its default.
    """
    known = _filled(before, dataclasses.asdict(TrainConfig()))
    return sorted(set(differences(known, now)) - CHANGEABLE)


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
            yield f"{prefix}{key}"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state, flat: "INDEX.NAME" -> tensor.

    Where it is sharded tensors are gathered one by one into the first process's memory, and none is left elsewhere.
    """
    flat: dict[str, Tensor] = {}
    for index, part in optimizer.state_dict()["state"].items():
        for name, value in part.items():
            whole = full(value)
            if distributed.is_main_process():
                flat[f"{index}.{name}"] = (whole if whole is value else whole.cpu()).contiguous()
    return flat


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Give an optimizer the state that a checkpoint kept."""
    state: dict[int, dict[str, Tensor]] = {}
    path = checkpoint / OPTIMIZER_FILE
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        for key, value in load_file(path).items():
            index, name = key.split(".")
            like = parameters[int(index)]
            if name not in ADAMW or value.shape != (() if name == "step" else like.shape):
                raise ValueError(f"{key} is none of this optimizer's")
            if not value.isfinite().all() or (name != "exp_avg" and (value < 0).any()):
                raise ValueError(f"{key} has values that no update makes")
            if name == "step" and not (1 <= value <= COUNT and value == value.round()):
                raise ValueError(f"{key} is {value:g}, and no number of updates")
            state.setdefault(int(index), {})[name] = value if name == "step" else as_sharded(value, like)
        if any(part.keys() != ADAMW for part in state.values()):
            raise ValueError("a part is missing")
    except (IndexError, OSError, SafetensorError, ValueError) as error:
        raise InputError("--resume", f"{path} is damaged ({error})", _go_back(checkpoint)) from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a JSONL file, and see them on the disk."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def lines_until(path: Path, step: int) -> list[str]:
    """Return the lines up to an update."""
    try:
        lines = path.read_text().split("\n")[:-1]  # a kill may have cut the last line
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError("--resume", f"{path} is damaged ({error})", "delete its lines without a step") from error
