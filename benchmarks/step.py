"""Whole training steps, beside TRL's `GRPOTrainer`: rollout, rewards, update; seconds and peak memory.

    python -m benchmarks.step [--json FILE] [--prompts FILE] [--device cuda]

4 prompts x 8 completions of up to 64 tokens, LoRA. Each peak is that of a process of its own, after one step. The third
row recomputes the model's blocks in the backward pass (`recompute: true`), as TRL does by default.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from hrpo.catalog import resolve

from . import ours
from .harness import (
    clock,
    finish,
    lengths_note,
    medians,
    note,
    parse,
    peak_gigabytes,
    problems,
    report_peak,
    share,
    show,
    spread,
)
from .peers import TrlTrainer

PROMPTS, GROUP, TOKENS = 4, 8, 64
SECONDS_FOR_PEAKS = 100
ROLLOUT = {"prompts": PROMPTS, "group_size": GROUP, "max_new_tokens": TOKENS}


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    if options.child:
        return one_step(options)
    middle: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    peaks: dict[str, dict[str, float]] = {}
    for left, dtype in zip(range(len(options.dtypes), 0, -1), options.dtypes, strict=True):
        seconds, lengths = measure(options, dtype, share(options, 1 / left) - SECONDS_FOR_PEAKS)
        middle[dtype] = medians(seconds)
        arguments = ["--prompts", str(options.prompts), "--dtype", dtype, "--model", options.model]
        arguments += ["--threads", str(options.threads)]
        peaks[dtype] = {
            name: peak_gigabytes(options.device, "benchmarks.step", *arguments, "--child", name) for name in seconds
        }
        details[dtype] = {"seconds": seconds, "lengths": lengths, "peak_gigabytes": peaks[dtype]}
        show(
            f"training step, {PROMPTS} x {GROUP}, up to {TOKENS} tokens, {dtype}",
            ["", "seconds", "range (runs)", "peak GB"],
            [
                (name, f"{middle[dtype][name]:.2f}", spread(s), f"{peaks[dtype][name]:.2f}")
                for name, s in seconds.items()
            ],
        )
        print(f"mean tokens of our completions in each step: {lengths_note(lengths)}")
    ratios: dict[str, float] = {}
    if "fp32" in middle:
        ratios["peak_memory_over_trl_recompute"] = peaks["fp32"]["hrpo, recompute"] / peaks["fp32"]["TRL"]
        ratios["step_vs_trl"] = middle["fp32"]["TRL"] / middle["fp32"]["hrpo"]
        ratios["peak_memory_over_trl"] = peaks["fp32"]["hrpo"] / peaks["fp32"]["TRL"]
    if "bf16" in middle:
        ratios["step_bf16_vs_trl"] = min(part["TRL"] for part in middle.values()) / middle["bf16"]["hrpo"]
        ratios["peak_memory_over_trl_bf16"] = peaks["bf16"]["hrpo"] / peaks["bf16"]["TRL"]
    return finish(options, ratios, details)


def measure(options: argparse.Namespace, dtype: str, until: float) -> tuple[dict[str, list[float]], list[int]]:
    """Return the seconds of each step, measured by then, and the lengths of our completions."""
    seconds: dict[str, list[float]] = {"hrpo": [], "hrpo, recompute": [], "TRL": []}
    lengths: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(options, dtype, Path(folder))

        def our_turn(turn: int) -> None:
            for name in ("hrpo", "hrpo, recompute"):
                trainer.config = dataclasses.replace(trainer.config, recompute="recompute" in name)
                start = clock()
                metrics = trainer.train_step()
                took = clock() - start
                note(name, turn, took)
                if turn:
                    seconds[name].append(took)
                    lengths.append(round(metrics["length"]))

        seconds["TRL"] = their_trainer(options, dtype).seconds(options.runs, our_turn, until)
    return seconds, lengths


def our_trainer(options: argparse.Namespace, dtype: str, folder: Path) -> Any:
    """Ours, on the first problems of the file."""
    return ours.trainer(folder, options.model, dtype, problems(options.prompts)[:PROMPTS], **ROLLOUT)


def their_trainer(options: argparse.Namespace, dtype: str) -> TrlTrainer:
    """TRL's, on the same problems; it generates by itself."""
    texts = problems(options.prompts)[:PROMPTS]
    return TrlTrainer(
        resolve(options.model), dtype, texts, group_size=GROUP, max_new_tokens=TOKENS, device=options.device
    )


def one_step(options: argparse.Namespace) -> None:
    """Take a step of one side, for its peak of memory."""
    (dtype,) = options.dtypes
    if options.child == "TRL":
        their_trainer(options, dtype).seconds(0)
        return report_peak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(options, dtype, Path(folder))
        trainer.config = dataclasses.replace(trainer.config, recompute="recompute" in options.child)
        trainer.train_step()
    return report_peak()


if __name__ == "__main__":
    main()
