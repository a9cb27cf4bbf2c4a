"""From where to where the numbers of settings and options may be."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from hrpo.common.errors import InputError

COUNT = 10**9  # of what is only counted, or taken from what there is
TOKENS = 10**7  # of a text: longer than any model's context
BATCH = 10**4  # of what is made or held at once
SHOTS = 10**4  # worked examples before a question
RANK = 10**4  # of adapters: above the width of most models
SEED = 2**32 - 1  # the largest that numpy takes
MIN_TEMPERATURE = 1e-6  # far below, logits over it overflow float32


@dataclasses.dataclass(frozen=True, repr=False)
class Between:
    """The bounds of a number, both included: Annotated[int, Between(1, 9)] is the type of a setting with them.

    Args:
        least: the smallest value.
        most: the largest.
        words: what it must be, "from 0 to 1", where the bounds alone do not say it well.
    """

    least: float
    most: float
    words: str = ""

    def __repr__(self) -> str:
        """Say it as `--help` shall."""
        return self.words or f"from {self.least:,} to {self.most:,}"

    def outside(self, value: float) -> str:
        """Return what is wrong with a value; nothing where it lies within."""
        if self.least <= value <= self.most:  # NaN does not
            return ""
        if self.words:
            return f"must be {self.words}, got {value}"
        if value > self.most:
            return f"must be at most {self.most:,}, got {value}"
        return f"must be at least {self.least:g}, got {value}"


# The types of numbers with bounds, for the settings.
Count = Annotated[int, Between(0, COUNT)]
Positive = Annotated[int, Between(1, COUNT)]
Batch = Annotated[int, Between(1, BATCH)]
Tokens = Annotated[int, Between(0, TOKENS)]
Shots = Annotated[int, Between(0, SHOTS)]
Rank = Annotated[int, Between(0, RANK)]
Seed = Annotated[int, Between(0, SEED, "from 0 to 2^32 - 1")]
Rate = Annotated[float, Between(0, 1, "from 0 to 1")]  # an AdamW step is as long: above 1, nothing of a weight is left
Share = Annotated[float, Between(0, math.nextafter(1, 0), "from 0 to below 1")]
Weight = Annotated[float, Between(0, sys.float_info.max, "at least 0 and finite")]
Norm = Annotated[float, Between(math.nextafter(0, 1), math.inf, "above 0, and .inf does not clip")]
_SAMPLED = f"at least {MIN_TEMPERATURE} and finite to sample"
Temperature = Annotated[float, Between(MIN_TEMPERATURE, sys.float_info.max, _SAMPLED)]

# Options of the commands that evaluate; `samples` of a problem are decoded and kept together.
OPTIONS = {
    "problems": Between(0, COUNT),
    "samples": Between(0, 10**4),
    "shots": Between(0, SHOTS),
    "max_new_tokens": Between(0, TOKENS),
    "batch": Between(1, BATCH),
    "seed": Between(0, SEED),
    "k": Between(1, 10**4),
}


def outside_of(bounds: Mapping[str, Between], values: Mapping[str, float]) -> list[InputError]:
    """Return what is wrong with each of some numbers."""
    return [InputError(name, said) for name, value in values.items() if (said := bounds[name].outside(value))]


def outside_types(settings: Any, prefix: str = "") -> Iterator[InputError]:
    """Yield what is wrong with each number of a dataclass, and of those within it, by the bounds in its type."""
    for field in dataclasses.fields(settings):
        name, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from outside_types(value, f"{name}.")
        if isinstance(value, int | float):  # and not "auto"
            for bounds in getattr(field.type, "__metadata__", ()):
                if said := bounds.outside(value):
                    yield InputError(name, said)
