"""Count the tokens that rounding flips: the same completions, computed in other batches: python scripts/flips.py.

A completion's random numbers depend on its key alone, so only rounding can make two ways to compute it sample different
tokens: a probability moves by 1e-7, and a number that fell just this side of a candidate's edge falls on the other.
What follows a flip is another completion, so one is counted for each completion that differs.
"""

import argparse
import dataclasses
import tempfile

import torch

from hrpo import HybridCausalLM, generate
from hrpo.chat import encode
from hrpo.config.schema import EvalConfig, ModelConfig, OptimizerConfig, RolloutConfig, TrainConfig
from hrpo.data import Rollout
from hrpo.engine.interface import DEFAULT, REFERENCE
from hrpo.tasks import load_task
from hrpo.training.run import Run

G = 8
MAX_NEW_TOKENS = 48
ALONE = {"group_size": G, "max_new_tokens": MAX_NEW_TOKENS, "seed": 0}
# Beside 512 rows at a time, finished ones dropped; see hrpo.engine.options.
WAYS = {
    "8 rows at a time": {"max_rows": 8},
    "64 rows at a time": {"max_rows": 64},
    "all rows at once": {"max_rows": None},
    "finished rows stay": {"options": dataclasses.replace(DEFAULT, compact=False)},
    "nothing that makes it fast": {"options": REFERENCE},
}


def compare(a: Rollout, b: Rollout) -> tuple[int, int]:
    """Return the tokens up to where completions part, that included, and how many completions part."""
    width = max(a.completion_ids.shape[1], b.completion_ids.shape[1])

    def padded(rollout: Rollout) -> torch.Tensor:
        ids = rollout.completion_ids.masked_fill(rollout.completion_mask == 0, -1)
        return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1)  # (N, T)

    differ = padded(a) != padded(b)
    parts = differ.any(1)
    tokens = torch.where(parts, differ.int().argmax(1) + 1, a.lengths)
    return int(tokens.sum()), int(parts.sum())


def of_batches(dtype: str, prompts: int) -> dict[str, tuple[int, int]]:
    """Return tokens and flips of each way to decode."""
    model = HybridCausalLM.from_pretrained("tiny", dtype=dtype, r_min=0.9)
    task = load_task(TrainConfig().task)
    asked = encode(model.tokenizer, [task.messages(example.question) for example in task.train[:prompts]])
    base = generate(model, asked, max_rows=512, **ALONE)
    return {
        name: compare(base, generate(model, asked, **{"max_rows": 512, **ALONE, **way})) for name, way in WAYS.items()
    }


def of_micro_batches(dtype: str, prompts: int) -> dict[str, tuple[int, int]]:
    """Return tokens and flips after an update whose gradient was summed up in micro-batches of other sizes."""
    rollouts = []
    with tempfile.TemporaryDirectory() as folder:
        for budget in (100_000, 200):
            config = TrainConfig(
                name=str(budget),
                output_dir=folder,
                max_tokens_per_microbatch=budget,
                model=ModelConfig(lora_rank=0, dtype=dtype),
                rollout=RolloutConfig(prompts_per_step=8, group_size=G, max_new_tokens=MAX_NEW_TOKENS),
                optimizer=OptimizerConfig(lr=1e-3, warmup=0.0),
                eval=EvalConfig(problems=0),
            )
            trainer = Run(config)
            for _ in range(3):
                trainer.train_step()
            rollouts.append(trainer.trainer.roll_out(list(trainer.trainer.task.train[:prompts]), key="flips"))
    return {"micro-batches of 200 tokens, in 3 updates before": compare(*rollouts)}


def count(dtype: str, prompts: int) -> dict[str, tuple[int, int]]:
    """Return tokens and flips by what differed."""
    return {**of_batches(dtype, prompts), **of_micro_batches(dtype, prompts)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=400, help=f"{G} completions each")
    options = parser.parse_args()
    for dtype in ("float32", "float64"):
        for name, (tokens, flips) in count(dtype, options.prompts).items():
            print(f"{dtype}, {name}: {flips} flips in {tokens:,} tokens", flush=True)
