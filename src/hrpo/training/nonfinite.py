"""What is not finite, or hangs on a rounding: found, told, and in training the batch is kept for a look."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hrpo.common import files
from hrpo.common.distributed import full
from hrpo.data import Rollout
from hrpo.model import HybridCausalLM
from hrpo.tasks import Example

FOLDER = "skipped"
KEPT = 5  # updates of a run that are kept; the first ones tell most
NAMED = 20  # parameters


def not_finite(model: HybridCausalLM) -> list[str]:
    """Return which gradients are not finite: names of parameters, the first twenty."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not full(p.grad).isfinite().all()]
    return _first(bad)


def _first(names: list[str]) -> list[str]:
    return [*names[:NAMED], f"and {len(names) - NAMED} more"] if len(names) > NAMED else names


def spoilt(model: HybridCausalLM, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return which trained weights, and which of AdamW's second moments, are not finite: the first twenty."""
    values: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seconds = {name: optimizer.state[p]["exp_avg_sq"] for name, p in values.items() if p in optimizer.state}
    values |= {f"the second moment of {name}": value for name, value in seconds.items()}
    if full(torch.nn.utils.get_total_norm(list(values.values()), math.inf)).isfinite():
        return []
    return _first([name for name, value in values.items() if not full(value).isfinite().all()])


def dump_batch(
    run: Path,
    step: int,
    why: str,
    rollout: Rollout,
    examples: Sequence[Example],
    completions: Sequence[str],
    facts: dict[str, Any],
) -> str:
    """Write skipped/update-STEP in a run folder, unless enough are there; return what to say of it.

    batch.json: why, what was asked and written, and `facts`. rollout.safetensors: every tensor of the rollout.
    """
    folder = run / FOLDER / f"update-{step}"
    if len(list(folder.parent.glob("update-*"))) >= KEPT and not folder.exists():
        return f"{folder.parent} keeps the first {KEPT}"
    asked = [{"question": example.question, "gold": example.gold} for example in examples]
    tensors = {name: value.contiguous() for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    with files.new_folder(folder) as draft:
        save_file(tensors, draft / "rollout.safetensors")
        batch = {"step": step, "why": why, "problems": asked, "completions": list(completions), **facts}
        (draft / "batch.json").write_text(json.dumps(batch, indent=1) + "\n")
    return f"the batch is in {folder}"
