"""Multi-step arithmetic, generated: sums, differences and products of single digits, worked out step by step."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.tasks.base import Example, Spec, Task, make_preamble

Split = Literal["train", "test"]
TRAIN, TEST = 1_000_000, 10_000
MOST_TERMS = 100  # working a problem out takes time that grows with their square
_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def solve(expression: str) -> tuple[list[str], int]:
    """Work out an expression of single digits one operation at a time, products first.

    Returns:
        The steps, such as ["3*4=12", "2+12=14"] for "2+3*4", and the value.

    """
    values = [int(digit) for digit in expression[::2]]
    operators = list(expression[1::2])
    steps = []
    while operators:
        at = operators.index("*") if "*" in operators else 0
        left, right = values[at : at + 2]
        result = _OPERATIONS[operators[at]](left, right)
        steps.append(f"{left}{operators[at]}{right}={result}")
        values[at : at + 2] = [result]
        del operators[at]
    return steps, values[0]


def split_of(expression: str) -> Split:
    """Return the split an expression belongs to: a tenth of all expressions, chosen by hash, is for tests only."""
    return "test" if hashlib.sha256(expression.encode()).digest()[0] % 10 == 0 else "train"


def draw(rng: random.Random, terms: int, split: Split) -> str:
    """Draw an expression of `terms` single digits that belongs to `split`; no two products in a row."""
    while True:
        expression = str(rng.randint(1, 9))
        for _ in range(terms - 1):
            after_product = expression[-2:-1] == "*"
            operator = rng.choice("+-" if after_product else "++--*")
            expression += operator + str(rng.randint(1, 9))
        if split_of(expression) == split:
            return expression


def worked(expression: str) -> Example:
    """Return the problem with its written-out solution."""
    steps, value = solve(expression)
    return Example(question=expression, gold=str(value), solution="\n".join([*steps, f"#### {value}"]))


@dataclass(frozen=True)
class Problems(Sequence[Example]):
    """Problem i is drawn from its own seed, so any of them can be had without the others."""

    split: Split
    seed: int
    size: int
    terms: tuple[int, int]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self.split}/{self.seed}/{index % self.size}")
        return worked(draw(rng, rng.randint(*self.terms), self.split))


def check(config: TaskConfig, *, test_only: bool = False) -> None:
    """Refuse numbers of terms that cannot be drawn, and files."""
    for field in ("path", "test_path"):
        if getattr(config, field):
            raise InputError(f"task.{field}", "the problems of arithmetic are generated", f"leave {field} out")
    if not 2 <= config.min_terms <= config.max_terms:
        raise InputError(
            "task.min_terms", f"must be from 2 to task.max_terms ({config.max_terms}), got {config.min_terms}"
        )
    if config.max_terms > MOST_TERMS:
        raise InputError("task.max_terms", f"must be at most {MOST_TERMS}, got {config.max_terms}")


def load(config: TaskConfig, seed: int, *, test_only: bool = False) -> Task:
    """Return the task; problems of the two splits never coincide, whatever the seed."""
    terms = (config.min_terms, config.max_terms)
    train = Problems("train", seed, TRAIN, terms)
    shots = [train[-1 - i] for i in range(config.num_fewshot)]
    return Task(
        "arithmetic",
        "number",
        [] if test_only else train,
        Problems("test", seed, TEST, terms),
        make_preamble("", shots),
    )


SPEC = Spec(
    "number", TRAIN, TEST, "generated, by number of terms", "Apache-2.0", load, check, lambda folder: "generated"
)
