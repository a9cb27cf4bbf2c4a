"""Rollouts: hybrid and discrete, beside a loop as released and `transformers.generate`; a decode step and its limit.

    python -m benchmarks.rollout [--json FILE] [--prompts FILE]

4 prompts x 8 completions of up to 128 tokens on the plain model, no adapter, natural stopping. `hybrid_over_discrete`
and `decode_over_matmuls` are taken without early stops, so that both sides do the same number of steps.
"""

import argparse
import functools
import time
from statistics import median
from typing import Any

import torch

from hrpo import HybridCausalLM, generate
from hrpo.copies import decoding_copy
from hrpo.linear import PackedLinear
from hrpo.techniques import FAST

from .harness import bare_model, compare, finish, lengths_note, medians, parse, prompt_ids, share, show, spread
from .peers import release_loop, transformers_generate

PROMPTS, GROUP, TOKENS = 4, 8, 128
SAMPLER: dict[str, Any] = {"group_size": GROUP, "max_new_tokens": TOKENS, "temperature": 0.5, "top_k": 50}


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    ratios: dict[str, float] = {}
    details: dict[str, Any] = {}
    for left, dtype in zip(range(len(options.dtypes), 0, -1), options.dtypes, strict=True):
        numbers, details[dtype] = measure(options, dtype, share(options, 1 / left))
        suffix = "" if dtype == "fp32" else f"_{dtype}"
        ratios |= {name + suffix: value for name, value in numbers.items()}
    finish(options, ratios, details)


def measure(options: argparse.Namespace, dtype: str, until: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Return ratios and all numbers of one dtype, measured by then."""
    model = bare_model(options.model, dtype)
    prompts = prompt_ids(model.tokenizer, options.prompts, PROMPTS)
    lengths: dict[str, list[int]] = {}

    def ours(name: str, mode: str, **changes: Any) -> float:
        start = time.perf_counter()
        rollout = generate(model, prompts, latent_mode=mode, **{**SAMPLER, **changes})
        seconds = time.perf_counter() - start
        lengths.setdefault(name, []).extend(rollout.lengths.tolist())
        return seconds

    def others(name: str, run: Any, *arguments: Any) -> float:
        start = time.perf_counter()
        found = run(*arguments, prompts, **SAMPLER)
        seconds = time.perf_counter() - start
        lengths.setdefault(name, []).extend(found)
        return seconds

    full = {"eos_token_id": []}
    peers = {
        "hrpo, hybrid": functools.partial(ours, "hrpo, hybrid", "hybrid"),
        "hrpo, discrete": functools.partial(ours, "hrpo, discrete", "discrete"),
        "loop as released, hybrid": functools.partial(others, "loop as released, hybrid", release_loop, model),
        "transformers.generate": functools.partial(
            others, "transformers.generate", transformers_generate, model.bare_lm, model.eos_token_ids
        ),
        "hrpo, hybrid, no early stop": functools.partial(ours, "hrpo, hybrid, no early stop", "hybrid", **full),
        "hrpo, discrete, no early stop": functools.partial(ours, "hrpo, discrete, no early stop", "discrete", **full),
        "one token of each": functools.partial(ours, "one token of each", "hybrid", max_new_tokens=1),
        "matrix products of a decode step": functools.partial(products, model, PROMPTS * GROUP),
    }
    seconds = compare(peers, options.runs, until)
    middle = medians(seconds)
    step = (middle["hrpo, hybrid, no early stop"] - middle["one token of each"]) / (TOKENS - 1)
    paired = zip(seconds["hrpo, hybrid, no early stop"], seconds["hrpo, discrete, no early stop"], strict=True)
    ratios = {
        "rollout_vs_release_loop": middle["loop as released, hybrid"] / middle["hrpo, hybrid"],
        "rollout_vs_transformers_generate": middle["transformers.generate"] / middle["hrpo, discrete"],
        "hybrid_over_discrete": median(hybrid / discrete for hybrid, discrete in paired),
        "decode_over_matmuls": step / middle["matrix products of a decode step"],
    }
    rows = [
        (
            name,
            f"{middle[name]:.3f}",
            spread(seconds[name]),
            lengths_note(lengths[name]) if name in lengths else "",
        )
        for name in peers
    ]
    rows.append(("a decode step of 32 rows", f"{step:.3f}", "", "hybrid, no early stop, after the first token"))
    tokens = sorted({len(prompt) for prompt in prompts})
    show(
        f"{PROMPTS} prompts of {tokens[0]} to {tokens[-1]} tokens x {GROUP}, up to {TOKENS} tokens, {dtype}",
        ["", "seconds", "range (runs)", "tokens of a completion"],
        rows,
    )
    return ratios, {"seconds": seconds, "decode_step": step, "lengths": lengths}


@torch.no_grad()
def products(model: HybridCausalLM, rows: int, repeats: int = 20) -> float:
    """Return the seconds of a decode step's matrix products alone: the same layers and weights, in order."""
    layers = [layer for layer in decoding_copy(model, FAST).modules() if isinstance(layer, PackedLinear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features).to(model.lm_dtype) for layer in layers}
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main()
