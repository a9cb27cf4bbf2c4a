"""What a run knows of its evaluations before and after training, in its folder."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from hrpo.common import files
from hrpo.common.errors import InputError
from hrpo.config.schema import LatentConfig, ModelConfig
from hrpo.evaluate import Answer, as_rows
from hrpo.model import HybridCausalLM
from hrpo.training.setup import load_model

FILE = "evaluation.json"


def evaluation_in(folder: Path) -> dict[str, Any]:
    """Return what has been evaluated so far.

    Raises:
        InputError: the file does not hold that.

    """
    path = folder / FILE
    again = "delete it, and what it held is evaluated again"
    evaluation: dict[str, Any] = files.read_json(path, "--resume", again) if path.is_file() else {}
    try:
        sum(part["greedy"]["problems"] for part in evaluation.values())
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("--resume", f"{path} is damaged (it holds no evaluation)", again) from error
    return evaluation


def keep_evaluation(
    folder: Path, when: str, numbers: Mapping[str, Any], answers: Mapping[str, Sequence[Answer]]
) -> None:
    """Write the answers, and add the numbers to what has been evaluated so far.

    Args:
        folder: of the run.
        when: "before" or "after".
        numbers: by "greedy" and "sampled".
        answers: the same.

    """
    for how, part in answers.items():
        rows = "".join(json.dumps(row) + "\n" for row in as_rows(part))
        files.write_text(folder / f"answers-{when}-{how}.jsonl", rows)
    evaluation = {**evaluation_in(folder), when: numbers}
    files.write_text(folder / FILE, json.dumps(evaluation, indent=2) + "\n")


def initial_model(config: ModelConfig, latent: LatentConfig, seed: int, model: HybridCausalLM) -> HybridCausalLM:
    """Return a run's model as it was before the first update, made once more."""
    set_seed(seed)
    initial = load_model(config, latent, None, model.device)
    initial.settings = dataclasses.replace(model.settings, step=0)
    return initial
