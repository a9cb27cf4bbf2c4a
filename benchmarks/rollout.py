"""Rollouts: hybrid and discrete, beside a loop as released and `transformers.generate`; a decode step and its limit.

    python -m benchmarks.rollout [--json FILE] [--prompts FILE] [--device cuda]

4 prompts x 8 completions of up to 128 tokens (`--tokens`) on the plain model, no adapter, natural stopping.
`hybrid_over_discrete` and `decode_over_matmuls` are taken without early stops, so that both sides do the same number
of steps. On CUDA, further rows decode with a captured graph, the capture included; the matrix products alone are
captured too.
"""

import argparse
import dataclasses
import functools
from statistics import median
from typing import Any

from hrpo import generate
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.interface import DEFAULT

from .harness import bare_model, clock, compare, finish, lengths_note, medians, parse, prompt_ids, share, show, spread
from .ours import decode_products
from .peers import release_loop, transformers_generate

PROMPTS, GROUP, TOKENS = 4, 8, 128
CAPTURED = "hrpo, hybrid, captured graph"
UNCOMPILED = "hrpo, hybrid, no compiled code"
PLAIN = dataclasses.replace(DEFAULT, accelerator=CpuAccelerator(compiled=False))
SAMPLER: dict[str, Any] = {"group_size": GROUP, "temperature": 0.5, "top_k": 50}


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, tokens=TOKENS)
    ratios: dict[str, float] = {}
    details: dict[str, Any] = {}
    for left, dtype in zip(range(len(options.dtypes), 0, -1), options.dtypes, strict=True):
        numbers, details[dtype] = measure(options, dtype, share(options, 1 / left))
        suffix = "" if dtype == "fp32" else f"_{dtype}"
        ratios |= {name + suffix: value for name, value in numbers.items()}
    finish(options, ratios, details)


def measure(options: argparse.Namespace, dtype: str, until: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Return ratios and all numbers of one dtype, measured by then."""
    model = bare_model(options.model, dtype, options.device)
    prompts = prompt_ids(model.tokenizer, options.prompts, PROMPTS)
    lengths: dict[str, list[int]] = {}
    sampler = {**SAMPLER, "max_new_tokens": options.tokens}

    def ours(name: str, mode: str, **changes: Any) -> float:
        start = clock()
        rollout = generate(model, prompts, latent_mode=mode, **{**sampler, **changes})
        seconds = clock() - start
        lengths.setdefault(name, []).extend(rollout.lengths.tolist())
        return seconds

    def others(name: str, run: Any, *arguments: Any) -> float:
        start = clock()
        found = run(*arguments, prompts, **sampler)
        seconds = clock() - start
        lengths.setdefault(name, []).extend(found)
        return seconds

    full = {"eos_token_id": []}
    peers = {
        "hrpo, hybrid": functools.partial(ours, "hrpo, hybrid", "hybrid"),
        "hrpo, discrete": functools.partial(ours, "hrpo, discrete", "discrete"),
        UNCOMPILED: functools.partial(ours, UNCOMPILED, "hybrid", options=PLAIN),
        "loop as released, hybrid": functools.partial(others, "loop as released, hybrid", release_loop, model),
        "transformers.generate": functools.partial(
            others, "transformers.generate", transformers_generate, model.bare_lm, model.eos_token_ids
        ),
        "hrpo, hybrid, no early stop": functools.partial(ours, "hrpo, hybrid, no early stop", "hybrid", **full),
        "hrpo, discrete, no early stop": functools.partial(ours, "hrpo, discrete, no early stop", "discrete", **full),
        "one token of each": functools.partial(ours, "one token of each", "hybrid", max_new_tokens=1),
        "matrix products of a decode step": functools.partial(decode_products, model, PROMPTS * GROUP),
    }
    if options.device == "cuda":
        static = dataclasses.replace(DEFAULT, static_shapes=True)
        for name, changes in {CAPTURED: {}, f"{CAPTURED}, no early stop": full}.items():
            peers[name] = functools.partial(ours, name, "hybrid", options=static, **changes)
    seconds = compare(peers, options.runs, until)
    middle = medians(seconds)
    steps = {
        name: (middle[f"{name}, no early stop"] - middle["one token of each"]) / (options.tokens - 1)
        for name in ("hrpo, hybrid", CAPTURED)
        if name in middle
    }
    paired = zip(seconds["hrpo, hybrid, no early stop"], seconds["hrpo, discrete, no early stop"], strict=True)
    ratios = {
        "rollout_vs_release_loop": middle["loop as released, hybrid"] / middle["hrpo, hybrid"],
        "rollout_vs_transformers_generate": middle["transformers.generate"] / middle["hrpo, discrete"],
        "compiled_vs_uncompiled": middle[UNCOMPILED] / middle["hrpo, hybrid"],
        "hybrid_over_discrete": median(hybrid / discrete for hybrid, discrete in paired),
        "decode_over_matmuls": steps["hrpo, hybrid"] / middle["matrix products of a decode step"],
    }
    if CAPTURED in steps:
        ratios["captured_decode_over_matmuls"] = steps[CAPTURED] / middle["matrix products of a decode step"]
    places = 3 if options.device == "cpu" else 5
    rows = [
        (
            name,
            f"{middle[name]:.{places}f}",
            spread(seconds[name]),
            lengths_note(lengths[name]) if name in lengths else "",
        )
        for name in peers
    ]
    for name, step in steps.items():
        note = f"{name.removeprefix('hrpo, ')}, no early stop, after the first token"
        rows.append(("a decode step of 32 rows", f"{step:.{places}f}", "", note))
    tokens = sorted({len(prompt) for prompt in prompts})
    show(
        f"{PROMPTS} prompts of {tokens[0]} to {tokens[-1]} tokens x {GROUP}, up to {options.tokens} tokens, {dtype}",
        ["", "seconds", "range (runs)", "tokens of a completion"],
        rows,
    )
    return ratios, {"seconds": seconds, "decode_step": steps["hrpo, hybrid"], "lengths": lengths}


if __name__ == "__main__":
    main()
