"""Whole training steps, beside TRL's `GRPOTrainer`: rollout, rewards, update; seconds and peak memory.

    python -m benchmarks.step [--json FILE] [--prompts FILE] [--device cuda]

4 prompts x 8 completions of up to 64 tokens, LoRA. Each peer has a process of its own; they step in turn. Peaks are
those of the first step, from its start on: loading a model maps its file, and the pages would count. On a CPU some of
the model's blocks are recomputed in the backward pass by default, and all of them by TRL; the second row keeps
everything (`recompute: false`). The last row is the limit: the step's products with the model's weights, nothing else.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F

from hrpo import HybridCausalLM
from hrpo.common.metrics import MEAN_LENGTH
from hrpo.engine.cpu.linear import CACHES, OneDNN
from hrpo.engine.layers import linear_layers
from hrpo.engine.select import accelerator_for
from hrpo.models.names import resolve

from . import ours
from .harness import (
    Asked,
    Peer,
    clock,
    compare,
    finish,
    forget_peak,
    lengths_note,
    medians,
    parse,
    problems,
    prompt_ids,
    share,
    show,
    spread,
)
from .ours import decode_products

PROMPTS, GROUP, TOKENS = 4, 8, 64
KEEPING, PRODUCTS = "hrpo, recompute: false", "its matrix products alone"
RECOMPUTE = {"hrpo": "auto", KEEPING: False}
ROLLOUT = {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_new_tokens": TOKENS}


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    if options.child:
        return work(options)
    middle: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    peaks: dict[str, dict[str, float]] = {}
    for left, dtype in zip(range(len(options.dtypes), 0, -1), options.dtypes, strict=True):
        seconds, lengths, peaks[dtype] = measure(options, dtype, share(options, 1 / left))
        middle[dtype] = medians(seconds)
        details[dtype] = {"seconds": seconds, "lengths": lengths, "peak_gigabytes": peaks[dtype]}
        show(
            f"training step, {PROMPTS} x {GROUP}, up to {TOKENS} tokens, {dtype}",
            ["", "seconds", "range (runs)", "peak GB"],
            [
                (name, f"{middle[dtype][name]:.2f}", spread(s), f"{peaks[dtype].get(name, math.nan):.2f}")
                for name, s in seconds.items()
            ],
        )
        print(f"mean tokens of our completions in each step: {lengths_note(lengths)}")
    ratios: dict[str, float] = {}
    for dtype, part in middle.items():
        ratios["step_over_matmuls" if dtype == "fp32" else f"step_over_matmuls_{dtype}"] = part["hrpo"] / part[PRODUCTS]
    if "fp32" in middle:
        ratios["step_vs_trl"] = middle["fp32"]["TRL"] / middle["fp32"]["hrpo"]
        ratios["peak_memory_over_trl"] = peaks["fp32"]["hrpo"] / peaks["fp32"]["TRL"]
    if "bf16" in middle:
        ratios["step_bf16_vs_trl"] = min(part["TRL"] for part in middle.values()) / middle["bf16"]["hrpo"]
        ratios["peak_memory_over_trl_bf16"] = peaks["bf16"]["hrpo"] / peaks["bf16"]["TRL"]
    return finish(options, ratios, details)


def measure(
    options: argparse.Namespace, dtype: str, until: float
) -> tuple[dict[str, list[float]], list[int], dict[str, float]]:
    """Return the seconds of each peer's steps, measured by then, lengths of our completions, and peaks of memory."""
    arguments = ["--prompts", str(options.prompts), "--dtype", dtype, "--model", options.model]
    arguments += ["--threads", str(options.threads), "--device", options.device]
    lengths: list[int] = []
    peaks: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        peers: dict[str, Callable[[], float]] = {}

        def add(name: str) -> None:
            peer = stack.enter_context(Peer("benchmarks.step", *arguments, "--child", name))

            def step() -> float:
                answer = peer.ask(length=lengths[-1] if lengths else TOKENS)
                if name != PRODUCTS:
                    peaks.setdefault(name, answer["peak_gigabytes"])
                if "length" in answer:
                    lengths.append(round(answer["length"]))
                return answer["seconds"]

            peers[name] = step

        for name in ("hrpo", KEEPING, "TRL", PRODUCTS):
            add(name)
        return compare(peers, options.runs, until), lengths, peaks


@torch.no_grad()
def products_alone(model: HybridCausalLM, prompts: list[int], length: int) -> float:
    """Return the seconds of a step's products with the model's weights, adapters and all else left out.

    A token at a time while sampling, after the prompts; then each group through policy and reference, and back to the
    inputs; through the head forward for both and back for the policy.
    """
    layers = [layer.base_layer.weight for _, layer in linear_layers(model.bare_lm) if isinstance(layer, LoraLayer)]
    head = model.bare_lm.get_output_embeddings().weight
    positions, columns = accelerator_for(model.device).head_tile

    sizes = {size for weight in layers for size in weight.shape}

    def through(rows: int, *, back: bool) -> None:
        inputs = {size: head.new_ones(rows, size) for size in sizes}
        for weight in layers:
            F.linear(inputs[weight.shape[1]], weight)
            if back:
                F.linear(inputs[weight.shape[0]], weight.t())

    seconds = (length - 1) * decode_products(model, PROMPTS * GROUP)
    start = clock()
    with OneDNN():
        through(sum(prompts), back=False)
        for prompt in prompts:
            fed = prompt + GROUP * (length - 1)
            through(fed, back=False)
            through(fed, back=True)
        tokens = PROMPTS * GROUP * length
        for first in range(0, tokens, positions):
            hidden = head.new_ones(min(positions, tokens - first), head.shape[1])
            for part in head.split(columns):
                F.linear(F.linear(hidden, part), part.t())
                F.linear(hidden, part)
    return seconds + clock() - start


def our_trainer(options: argparse.Namespace, dtype: str, folder: Path) -> Any:
    """Ours, on the first problems of the file."""
    return ours.trainer(folder, options.model, dtype, problems(options.prompts)[:PROMPTS], **ROLLOUT)


def their_trainer(options: argparse.Namespace, dtype: str) -> Any:
    """TRL's, on the same problems; it generates by itself."""
    from .peers import TrlTrainer  # not at the top: our process would hold it, too

    texts = problems(options.prompts)[:PROMPTS]
    return TrlTrainer(
        resolve(options.model), dtype, texts, group_size=GROUP, max_new_tokens=TOKENS, device=options.device
    )


def work(options: argparse.Namespace) -> None:
    """Be one of the peers."""
    (dtype,) = options.dtypes
    asked = Asked()
    if options.child == "TRL":
        for name in CACHES:  # of hrpo's choice
            os.environ.pop(name, None)
        asked.wait()

        def report(turn: int, seconds: float) -> None:
            asked.answer(seconds=seconds)
            asked.wait()

        their_trainer(options, dtype).seconds(sys.maxsize - 1, report)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(options, dtype, Path(folder))
        if options.child == PRODUCTS:
            prompts = [len(prompt) for prompt in prompt_ids(trainer.model.tokenizer, options.prompts, PROMPTS)]
            while True:
                asked.answer(seconds=products_alone(trainer.model, prompts, int(asked.wait()["length"])))
        trainer.config = dataclasses.replace(trainer.config, gradient_checkpointing=RECOMPUTE[options.child])
        forget_peak()
        while True:
            asked.wait()
            start = clock()
            metrics = trainer.train_step()
            asked.answer(seconds=clock() - start, length=metrics[MEAN_LENGTH])


if __name__ == "__main__":
    main()
