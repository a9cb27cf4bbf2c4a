"""What the options of an evaluation may be."""

from typing import get_args

from hrpo.common.errors import InputError
from hrpo.config.bounds import OPTIONS, outside_of
from hrpo.config.schema import Scorer


def check_numbers(seed: int | None, **numbers: int) -> None:
    """Refuse numbers outside of their bounds in `OPTIONS`.

    Raises:
        InputError: names each of them.

    """
    if wrong := outside_of(OPTIONS, {**numbers, "seed": seed or 0}):
        raise InputError.joined([InputError(f"--{error.field}", error.problem) for error in wrong])


def check_scorer(scorer: str) -> None:
    """Refuse a name that no scorer has; empty is none.

    Raises:
        InputError: it is such a name.

    """
    if scorer not in ("", *get_args(Scorer)):
        raise InputError("--scorer", f"must be one of {', '.join(get_args(Scorer))}, got {scorer!r}")
