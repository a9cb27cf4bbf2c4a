"""Who is evaluated: the rows of the table, each a model, the latent mode it decodes in and how it is asked."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from hrpo.common.errors import InputError, model_named_by
from hrpo.config.schema import length_limit
from hrpo.latent import mode_names, mode_of
from hrpo.models.context import context_of
from hrpo.models.digests import file_sha256, hub_commit
from hrpo.models.load import load_config
from hrpo.models.names import fetch_hybrid, resolve
from hrpo.models.settings import SETTINGS_FILE, HybridSettings, read_settings
from hrpo.storage.run_dir import model_in

Prompt = Literal["own", "direct", "cot"]
OWN = "own"
NO_WEIGHTS = ("optimizer.safetensors", "trainer.json", "README.md")  # in a checkpoint, but no part of its model


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        label: what it is called there.
        checkpoint: the model's name, as it was given.
        settings: of the model, with the mode and the length limit in which it is evaluated.
        prompt: "own", as the model was trained, or as the task asks; "cot", the paper's system prompt; "direct", which
            asks for the answer alone.
        shots: worked examples before the question; with prompt "own" 0 leaves a checkpoint those of its training.
        files: digest of the model's files, by folder.

    """

    label: str
    checkpoint: str
    settings: HybridSettings
    prompt: Prompt
    shots: int
    files: dict[str, str]


def make_entries(
    checkpoints: Sequence[str],
    modes: Sequence[str],
    prompts: Sequence[str],
    shots: int,
    max_new_tokens: int,
    *,
    trust_remote_code: bool = False,
) -> list[Entry]:
    """Return each checkpoint in each latent mode with each prompt, without loading a model.

    A plain model remembers nothing. It decodes and is asked as the first checkpoint beside it that does, or else with
    the paper's settings, its completions no longer than half of its context.

    Args:
        checkpoints: saved hybrid models, run folders (their newest checkpoint), or plain models.
        modes: latent modes; "own" is the one that a model was trained in, discrete for a plain model.
        prompts: see `Entry`.
        shots: see `Entry`.
        max_new_tokens: length limit of a completion; 0 leaves each model its own.
        trust_remote_code: run code that comes with a model, to read its settings.

    Raises:
        InputError: no such model, mode or prompt, or a mode that a model has no trained gate for.

    """
    _check("--latent_mode", modes, [OWN, *mode_names()])
    _check("--prompt", prompts, list(get_args(Prompt)))
    entries, labels = list[Entry](), _labels(checkpoints)
    known = [describe(name, trust_remote_code) for name in checkpoints]
    trained = next((settings for settings, _ in known if settings.task), None)
    for name, label, (settings, files) in zip(checkpoints, labels, known, strict=True):
        saved = settings if settings.task or trained is None else _as_beside(settings, trained)
        for mode in modes:
            decoding = _decoding(name, saved, mode, max_new_tokens)
            for prompt in prompts:
                notes: list[str] = [decoding.latent_mode] if decoding.latent_mode != saved.latent_mode else []
                notes += [prompt] if prompt != OWN else []
                notes += [f"{shots}-shot"] if shots else []
                said = f"{label} ({', '.join(notes)})" if notes else label
                entry = Entry(said, name, decoding, cast(Prompt, prompt), shots, files)
                if said not in [other.label for other in entries]:  # own and discrete may be the same
                    entries.append(entry)
    return entries


def describe(name: str, trust_remote_code: bool) -> tuple[HybridSettings, dict[str, str]]:
    """Return what a model remembers (a plain one: the defaults, decoding discretely) and a digest of its files.

    Raises:
        InputError: there is no such model.

    """
    with model_named_by("--checkpoint"):
        folder = fetch_hybrid(resolve(model_in(name)))
        path = Path(folder) / SETTINGS_FILE
        if path.is_file():
            settings = read_settings(path)
        else:
            limit = length_limit("auto", context_of(load_config(folder, trust_remote_code)))
            settings = HybridSettings(name, "discrete", max_new_tokens=limit)
        files = {str(name): digest(folder)}
        if (Path(folder) / "adapter_config.json").is_file():
            with model_named_by("model.name", f"base_model in {path}"):
                files[settings.base_model] = digest(fetch_hybrid(resolve(settings.base_model)))
    return settings, files


@functools.cache
def digest(folder: str) -> str:
    """Return a digest of the files of a model's folder; for a plain model on the Hub the commit that is used.

    Raises:
        InputError: the Hub cannot be reached.

    """
    if not Path(folder).is_dir():
        return hub_commit(folder)
    whole = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.name not in NO_WEIGHTS:
            whole.update(f"{path.name} {file_sha256(path)}\n".encode())
    return whole.hexdigest()


def as_settings(entry: Entry) -> dict[str, Any]:
    """Return what settings.json says of an entry."""
    kept = dataclasses.asdict(entry.settings)
    decoding = ("latent_mode", "mixed_in", "temperature", "top_k", "max_new_tokens", "dtype", "quantization")
    return {
        "checkpoint": entry.checkpoint,
        "base_model": kept["base_model"],
        "step": kept["step"],
        "files": entry.files,
        "decoding": {name: kept[name] for name in decoding},
        "prompt": entry.prompt,
        "shots": entry.shots,
    }


def _as_beside(plain: HybridSettings, trained: HybridSettings) -> HybridSettings:
    shared = ("temperature", "top_k", "max_new_tokens", "preamble", "task", "seed")
    return dataclasses.replace(plain, **{name: getattr(trained, name) for name in shared})


def _check(field: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    for value in values or [""]:
        if value not in allowed:
            raise InputError(field, f"must be of {', '.join(allowed)}, separated by commas", f"got {value!r}")


def _decoding(name: str, saved: HybridSettings, mode: str, max_new_tokens: int) -> HybridSettings:
    if mode != OWN and mode_of(mode).gated and not mode_of(saved.latent_mode).gated:
        raise InputError("--latent_mode", f"{name} has no trained gate, so it cannot decode in mode {mode}")
    latent_mode = saved.latent_mode if mode == OWN else mode
    limit = max_new_tokens or saved.max_new_tokens
    return dataclasses.replace(saved, latent_mode=latent_mode, max_new_tokens=limit)


def _labels(names: Sequence[str]) -> list[str]:
    """Return a short name for each model: the end of its path that no other one has.

    Raises:
        InputError: a model is named twice.

    """
    paths = [Path(name).absolute() for name in names]
    if len(set(paths)) < len(paths):
        raise InputError("--checkpoint", "one is named twice")
    labels = []
    for path in paths:
        parts = 2 if path.name.startswith("checkpoint-") else 1
        while parts < len(path.parts) and [other.parts[-parts:] for other in paths].count(path.parts[-parts:]) > 1:
            parts += 1
        labels.append("/".join(path.parts[-parts:]))
    return labels
