"""What is not finite: refused in an answer; in training the batch is kept in the run folder for a look."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hrpo import files
from hrpo.errors import StoppedError
from hrpo.model import HybridCausalLM
from hrpo.rollout import Rollout
from hrpo.sharding import full
from hrpo.tasks import Example

FOLDER = "skipped"
KEPT = 5  # updates of a run that are kept; the first ones tell most
NAMED = 20  # parameters


def check_finite(model: HybridCausalLM, rollout: Rollout) -> None:
    """Refuse completions that were drawn from logits that are no numbers.

    Raises:
        StoppedError: they were.

    """
    if not rollout.finite():
        raise StoppedError(
            f"the logits of {model.settings.base_model} are not finite after {model.settings.step} updates: "
            f"its weights are spoiled, or {model.settings.dtype} is too narrow for it (model.dtype)"
        )


def not_finite(model: HybridCausalLM) -> list[str]:
    """Return which gradients are not finite: names of parameters, the first twenty."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not full(p.grad).isfinite().all()]
    return [*bad[:NAMED], f"and {len(bad) - NAMED} more"] if len(bad) > NAMED else bad


def keep_batch(
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
