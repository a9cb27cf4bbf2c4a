"""How long a sequence a model serves: what its config names, and no longer than its position embedding stays the same.

LongRoPE (Phi-3, Phi-4-mini) has one set of frequencies up to `original_max_position_embeddings` tokens and another one
beyond. Dynamic NTK scaling has others for each length beyond `max_position_embeddings`. What counts is the longest
sequence of a batch, whenever the model runs: beyond the limit, log-probabilities of a sequence depend on the others and
on whether its keys were cached before it grew, so that a replay cannot repeat a rollout. Such sequences are refused.
"""

from dataclasses import dataclass
from typing import Any

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class RopeLimit:
    """Up to so many tokens a sequence has the same frequencies; `kind` is the config's name of what changes them."""

    tokens: int
    kind: str


def rope_limit(lm_config: Any) -> RopeLimit | None:
    """Return the limit that transformers' config of a model sets; None where all lengths have the same frequencies."""
    config = lm_config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]  # some have one a layer type
    limits = []
    for rope in sets:
        kind = str(rope.get("rope_type") or rope.get("type"))
        if "long_factor" in rope:  # LongRoPE, also by its older names, "su" and "yarn" of Phi-3
            original = rope.get(ORIGINAL) or getattr(config, ORIGINAL, None) or config.max_position_embeddings
            limits.append(RopeLimit(original, kind))
        elif "dynamic" in kind:
            limits.append(RopeLimit(config.max_position_embeddings, kind))
    return min(limits, key=lambda limit: limit.tokens, default=None)


def context_of(config: Any) -> int | None:
    """Return the positions that a model serves; None where transformers' config of it names no limit.

    They are those that it was made for, and none beyond its `rope_limit`.
    """
    positions, limit = getattr(config.get_text_config(), "max_position_embeddings", None), rope_limit(config)
    return min(filter(None, [positions, limit and limit.tokens]), default=None)


def context_text(config: Any) -> str:
    """Return a model's context in words, and why it ends there where that is its position embedding."""
    context, limit = context_of(config), rope_limit(config)
    reason = f", beyond which its {limit.kind} position embedding changes" if limit and limit.tokens == context else ""
    return f"context of {context} tokens{reason}"
