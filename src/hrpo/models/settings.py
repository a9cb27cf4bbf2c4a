"""What a saved hybrid model remembers, hybrid.json, and what adapters a new one is to have."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hrpo.common.errors import InputError
from hrpo.config.bounds import COUNT, MIN_TEMPERATURE, SEED, TOKENS, Between
from hrpo.config.old_names import with_new_names
from hrpo.config.schema import LONGEST, Dtype, MixedIn, Quantization, TaskConfig
from hrpo.latent import mode_names
from hrpo.models.loading_errors import AGAIN, first_line

SETTINGS_FILE = "hybrid.json"
COUNTED = Between(0, COUNT)
BOUNDS = {"max_new_tokens": Between(1, TOKENS), "top_k": COUNTED, "seed": Between(0, SEED), "step": COUNTED}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the linear layers of the blocks.

    Args:
        r: rank.
        alpha: the adapter's output is scaled by alpha / r.
        targets: names of the layers; "all-linear" takes every linear layer but the head, as the release does.

    """

    r: int = 32
    alpha: int = 64
    targets: str | list[str] = "all-linear"


@dataclass(frozen=True)
class HybridSettings:
    """What a checkpoint remembers, `hybrid.json`: how its model was made and how it decodes.

    Args:
        base_model: what the language model was trained from.
        base_files: digests of its files, see `hrpo.models.digests`; empty where they are not known.
        latent_mode: what is fed while thinking, see `hrpo.latent`.
        mixed_in: which latent "hybrid" mixes in.
        dtype: of the computation, as in `from_pretrained`.
        quantization: of the base model's weights.
        temperature: of the sampler, tau.
        top_k: candidates kept, 0 for all.
        max_new_tokens: length limit of a completion.
        preamble: the messages that every conversation begins with: system prompt and worked examples.
        task: the settings of the task it was trained on.
        seed: of the run, and of the task's generated problems.
        step: updates done.

    """

    base_model: str
    latent_mode: str = "hybrid"
    dtype: Dtype = "float32"
    quantization: Quantization = "none"
    temperature: float = 0.5
    top_k: int = 50
    max_new_tokens: int = LONGEST
    preamble: list[dict[str, str]] = field(default_factory=list)
    task: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    step: int = 0
    mixed_in: MixedIn = "interpolation"
    base_files: dict[str, str] = field(default_factory=dict)


def read_settings(path: Path) -> HybridSettings:
    """Read a hybrid.json.

    Raises:
        InputError: it is none, or has a value that cannot be.

    """
    try:
        given, _ = with_new_names(json.loads(path.read_text()))
        settings = HybridSettings(**given)
    except (OSError, RecursionError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise InputError("model.name", f"{path}: not the settings of a hybrid model: {reason}", AGAIN) from error
    values = dataclasses.asdict(settings)
    for name, value, allowed in (
        ("latent_mode", settings.latent_mode, mode_names()),
        ("mixed_in", settings.mixed_in, get_args(MixedIn)),
        ("dtype", settings.dtype, get_args(Dtype)),
        ("quantization", settings.quantization, get_args(Quantization)),
    ):
        if value not in allowed:
            raise InputError("model.name", f"{path}: {name} is {value!r}, not one of {', '.join(allowed)}")
    wrong = _unfit(values, dataclasses.asdict(HybridSettings("")))
    if not wrong:
        wrong = [f"task.{name}" for name in _unfit(settings.task, dataclasses.asdict(TaskConfig()))]
        wrong += [] if MIN_TEMPERATURE <= settings.temperature <= sys.float_info.max else ["temperature"]
        wrong += [name for name, bounds in BOUNDS.items() if bounds.outside(values[name])]
        wrong += [] if all(map(_is_message, settings.preamble)) else ["preamble"]
    if wrong:
        raise InputError("model.name", f"{path}: no usable value of {', '.join(wrong)}", AGAIN)
    return settings


def _unfit(values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Return the names of values that are unknown, or of another type than their defaults."""
    types = {name: (float, int) if isinstance(value, float) else (type(value),) for name, value in defaults.items()}
    return [name for name, value in values.items() if type(value) not in types.get(name, ())]  # True is a number, too


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ("system", "user", "assistant")
        and isinstance(message["content"], str)
    )
