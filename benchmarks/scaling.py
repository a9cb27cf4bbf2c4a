"""How cost grows: with completion tokens, with groups, and not with the number of completions of a prompt.

    python -m benchmarks.scaling [--json FILE] [--plot FILE]

Seconds of a rollout (hybrid, no early stop) and of the replay and backward pass of its update (LoRA, fp32).
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import torch

from hrpo import HybridCausalLM, Lora, generate, hrpo_loss, replay

from .harness import finish, parse, prompt_ids, show

mpl.use("Agg")
from matplotlib import pyplot as plt

GROUP, LONG_PROMPT = 8, 1500
CURVES = {  # title: (what is varied, its values, the rest)
    "completion tokens, 4 prompts x 8": ("tokens", [16, 32, 64, 128], {}),
    "prompts, x 8 completions of 64 tokens": ("prompts", [1, 2, 4, 8], {}),
    "completions of a prompt of 1,500 tokens, 2 tokens each": (
        "group",
        [1, 4, 16],
        {"prompts": 1, "tokens": 2, "length": LONG_PROMPT},
    ),
}


def main() -> None:
    """Measure, print and draw."""
    chosen = parse(__doc__, runs=3, plot="draw the curves there")
    torch.manual_seed(0)
    model = HybridCausalLM.from_pretrained(chosen.model, lora=Lora(), device=chosen.device)
    texts = prompt_ids(model.tokenizer, chosen.prompts, 16)
    details: dict[str, Any] = {}
    for title, (name, values, rest) in CURVES.items():
        points = [measure(model, texts, chosen.runs, **{**rest, name: value}) for value in values]
        details[title] = {name: values, "rollout": [a for a, _ in points], "update": [b for _, b in points]}
        show(
            title,
            [name, "rollout, seconds", "update, seconds"],
            [(str(value), f"{a:.2f}", f"{b:.2f}") for value, (a, b) in zip(values, points, strict=True)],
        )
    if chosen.plot:
        draw(details, chosen.plot)
    finish(chosen, {}, details)


def measure(
    model: HybridCausalLM,
    texts: list[list[int]],
    runs: int,
    *,
    prompts: int = 4,
    group: int = GROUP,
    tokens: int = 64,
    length: int = 0,
) -> tuple[float, float]:
    """Return the median seconds of a rollout and of an update, after one warm-up."""
    chosen = texts[:prompts]
    if length:
        row = [token for text in texts for token in text]
        chosen = [(row * (length // len(row) + 1))[:length]] * prompts
    times: tuple[list[float], list[float]] = [], []
    for _ in range(runs + 1):
        start = time.perf_counter()
        rollout = generate(model, chosen, group_size=group, max_new_tokens=tokens, eos_token_id=[])
        times[0].append(time.perf_counter() - start)
        advantages = torch.linspace(-1, 1, len(rollout))
        start = time.perf_counter()
        for first, last in rollout.micro_batches(1500 + 64):
            part = rollout.select(first, last)
            logprobs, reference = replay(model, part)
            loss, _ = hrpo_loss(logprobs, reference, advantages[first:last], part.completion_mask, beta=0.005)
            torch.autograd.backward(loss)
        model.zero_grad()
        times[1].append(time.perf_counter() - start)
    return median(times[0][1:]), median(times[1][1:])


def draw(details: dict[str, Any], path: Path) -> None:
    """Draw each curve, from zero."""
    figure, axes = plt.subplots(1, len(details), figsize=(13, 3.6), layout="constrained")
    for axis, (title, curve) in zip(axes, details.items(), strict=True):
        name, values = next(iter(curve.items()))
        for label, colour in (("rollout", "tab:blue"), ("update", "tab:orange")):
            axis.plot(values, curve[label], "o-", color=colour, label=label)
        axis.set(title=title, xlabel=name, ylabel="seconds", ylim=(0, None), xlim=(0, None))
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
