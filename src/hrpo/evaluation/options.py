"""What may be set of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from hrpo.common.errors import InputError
from hrpo.config.bounds import OPTIONS, outside_of
from hrpo.config.schema import Scorer
from hrpo.evaluation.entries import OWN


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `evaluate_checkpoints`.

    Args:
        tasks: by name; none takes the task that the checkpoints were trained on.
        path: a training file, or a folder of one or several benchmarks.
        test_path: the test file, where it lies elsewhere.
        problems: test problems of each task, from the first; 0 takes all.
        samples: sampled answers to each problem, k; 0 leaves only the greedy one.
        latent_modes: each checkpoint is evaluated in each; "own" is the one it was trained in.
        prompts: each checkpoint is asked in each way: "own", "direct" or "cot".
        shots: worked examples before each question, instead of a checkpoint's own.
        shots_path: a file of rows that these are taken from, instead of the training problems.
        scorer: "own" or "math_string", of mathematical tasks; default the one of training.
        max_new_tokens: length limit of a completion; 0 leaves each model its own.
        batch: completions decoded at a time.
        seed: of generated problems, worked examples and samples; default that of the first checkpoint's run.
        out: the folder; default one in evaluations/ that these settings alone have.
        trust_remote_code: run code that comes with a base model.

    Raises:
        InputError: a number is out of its bounds, or there is no such scorer.

    """

    tasks: Sequence[str] = ()
    path: str = ""
    test_path: str = ""
    problems: int = 500
    samples: int = 1
    latent_modes: Sequence[str] = (OWN,)
    prompts: Sequence[str] = (OWN,)
    shots: int = 0
    shots_path: str = ""
    scorer: str = ""
    max_new_tokens: int = 0
    batch: int = 64
    seed: int | None = None
    out: str = ""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        names = ("problems", "samples", "shots", "max_new_tokens", "batch")
        given = {**{name: getattr(self, name) for name in names}, "seed": self.seed or 0}
        if wrong := outside_of(OPTIONS, given):
            raise InputError("; also ".join(f"--{said}" for said in wrong))
        if self.scorer not in ("", *get_args(Scorer)):
            raise InputError(f"--scorer: must be one of {', '.join(get_args(Scorer))}, got {self.scorer!r}")
