"""Updates on a given rollout, beside TRL's `GRPOTrainer` on the same token ids.

    python -m benchmarks.update [--json FILE] [--prompts FILE] [--device cuda]

An update replays policy and reference, takes the loss, goes backward through LoRA adapters and steps the optimizer.
Two shapes: 4 prompts x 8 completions, and one prompt of 1,500 tokens, as retrieval makes them, x 8; up to 64
tokens each. On a CPU a third peer is hrpo without its compiled code.
"""

import argparse
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from hrpo import Rollout, generate, replay
from hrpo.config.schema import Policy
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.interface import DEFAULT
from hrpo.training.run import Run

from . import ours
from .harness import clock, finish, lengths_note, medians, note, parse, problems, prompt_ids, share, show, spread
from .peers import TrlTrainer

GROUP, TOKENS, RETRIEVAL_TOKENS = 8, 64, 1500
SHAPES = {"update_vs_trl": 4, "update_rag_vs_trl": 1}  # prompts
UNCOMPILED = "hrpo, no compiled code"
TIME = {"update_vs_trl": 1, "update_rag_vs_trl": 2}  # of each, in relation


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    ratios: dict[str, float] = {}
    details: dict[str, Any] = {}
    left = len(options.dtypes) * sum(TIME.values())
    for dtype in options.dtypes:
        for name, count in SHAPES.items():
            key = name if dtype == "fp32" else f"{name}_{dtype}"
            until = share(options, TIME[name] / left)
            ratios[key], details[key] = measure(options, dtype, count, until, retrieval="rag" in name)
            left -= TIME[name]
            if UNCOMPILED in details[key]["seconds"]:
                middle = medians(details[key]["seconds"])
                ratios[f"{key.replace('_trl', '_uncompiled')}"] = middle[UNCOMPILED] / middle["hrpo"]
    finish(options, ratios, details)


def measure(
    options: argparse.Namespace, dtype: str, count: int, until: float, *, retrieval: bool
) -> tuple[float, dict[str, Any]]:
    """Return TRL's time over ours, and all numbers, measured by then."""
    texts = problems(options.prompts)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ours.trainer(
            Path(folder), options.model, dtype, texts, prompts_per_step=count, group_size=GROUP, max_new_tokens=TOKENS
        )
        rollout = roll_out(trainer, options.prompts, count, retrieval=retrieval)
        replays = {"hrpo": trainer.trainer.replay}
        if options.device == "cpu":
            replays[UNCOMPILED] = functools.partial(replay_uncompiled, trainer)
        seconds: dict[str, list[float]] = {"TRL": [], **{name: [] for name in replays}}

        def our_turn(turn: int, theirs: float) -> None:
            note("TRL", turn, theirs)
            for name, way in replays.items():
                trainer.trainer.replay = way  # type: ignore[method-assign]
                start = clock()
                ours.update(trainer, rollout)
                took = clock() - start
                note(name, turn, took)
                if turn:
                    seconds[name].append(took)

        peer = TrlTrainer(
            trainer.model.lm.peft_config["default"].base_model_name_or_path,
            dtype,
            texts[:count],
            group_size=GROUP,
            given=token_ids(rollout),
            max_new_tokens=TOKENS,
            device=options.device,
        )
        seconds["TRL"] = peer.seconds(options.runs, our_turn, until)
    middle = medians(seconds)
    lengths = rollout.lengths.tolist()
    show(
        f"update, {count} x {GROUP}, prompts of up to {rollout.prompt_ids.shape[1]} tokens, {dtype}",
        ["", "seconds", "range (runs)"],
        [(name, f"{middle[name]:.2f}", spread(s)) for name, s in seconds.items()],
    )
    print(f"tokens of a completion: {lengths_note(lengths)}")
    return middle["TRL"] / middle["hrpo"], {"seconds": seconds, "lengths": lengths}


def replay_uncompiled(
    trainer: Run, rollout: Rollout, *, policy: Policy = "model", with_reference: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Replay as `Trainer.replay` does, by PyTorch and oneDNN alone."""
    return replay(
        trainer.model,
        rollout,
        policy=policy,
        with_reference=with_reference,
        recompute=trainer.trainer.recompute(rollout),
        options=dataclasses.replace(DEFAULT, accelerator=CpuAccelerator(compiled=False)),
    )


def roll_out(trainer: Run, file: Path, count: int, *, retrieval: bool) -> Rollout:
    """Return a hybrid rollout of the trainer's model; for retrieval, all problems of the file make one long prompt."""
    model, settings = trainer.model, trainer.config.rollout
    prompts = prompt_ids(model.tokenizer, file, 16 if retrieval else count)
    if retrieval:
        tokens = [token for prompt in prompts for token in prompt]
        prompts = [(tokens * (RETRIEVAL_TOKENS // len(tokens) + 1))[:RETRIEVAL_TOKENS]] * count
    return generate(
        model,
        prompts,
        group_size=settings.group_size,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
    )


def token_ids(rollout: Rollout) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts, one a group, and of completions, one a row, without padding."""
    masks = ((rollout.prompt_ids, rollout.prompt_mask), (rollout.completion_ids, rollout.completion_mask))
    prompts, completions = ([row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)] for ids, mask in masks)
    return prompts, completions


if __name__ == "__main__":
    main()
