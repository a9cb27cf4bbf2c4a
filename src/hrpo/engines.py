"""Who decodes while training: a `RolloutEngine`, by name in `ENGINES`."""

import difflib
from collections.abc import Callable, Sequence
from typing import Protocol

from hrpo.common.errors import InputError
from hrpo.data import Rollout, SamplingParams
from hrpo.engine.interface import DEFAULT, EngineOptions
from hrpo.latent import LatentMode
from hrpo.model import HybridCausalLM
from hrpo.rollout import generate


class RolloutEngine(Protocol):
    """Completes prompts with the weights that it was given last."""

    def update_weights(self, model: HybridCausalLM) -> None:
        """Take the model's weights as they are now."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        mode: LatentMode,
        *,
        group_size: int,
        sample_keys: Sequence[int],
    ) -> Rollout:
        """Return group_size completions of each prompt, given as token ids; their random numbers depend on the keys."""

    def close(self) -> None:
        """Let go of what it holds."""


class HybridEngine:
    """The own engine: the model that is trained decodes in its own process.

    Args:
        options: how it computes.
        max_rows: completions at a time; None takes all at once.

    """

    def __init__(self, options: EngineOptions = DEFAULT, max_rows: int | None = None) -> None:
        self.options, self.max_rows = options, max_rows
        self.model: HybridCausalLM | None = None

    def update_weights(self, model: HybridCausalLM) -> None:
        """See `RolloutEngine`; nothing is copied."""
        self.model = model

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        mode: LatentMode,
        *,
        group_size: int,
        sample_keys: Sequence[int],
    ) -> Rollout:
        """See `RolloutEngine`."""
        if self.model is None:
            raise ValueError("update_weights comes before generate")
        return generate(
            self.model,
            prompts,
            sampling=sampling,
            group_size=group_size,
            sample_keys=sample_keys,
            latent_mode=mode,
            max_rows=self.max_rows,
            options=self.options,
        )

    def close(self) -> None:
        """See `RolloutEngine`."""
        self.model = None


# How an engine is made: from how it is to compute, and the most completions of an update.
EngineMaker = Callable[[EngineOptions, int], RolloutEngine]
ENGINES: dict[str, EngineMaker] = {"hybrid": HybridEngine}


def engine_of(name: str) -> EngineMaker:
    """Return what makes an engine, by name.

    Raises:
        InputError: there is none of this name.

    """
    if name not in ENGINES:
        close = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError("rollout.engine", f"must be one of {', '.join(ENGINES)}, got {name!r}{hint}")
    return ENGINES[name]
