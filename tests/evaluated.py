"""What tests of evaluations share."""

import dataclasses
from pathlib import Path

import torch

from hrpo import HybridCausalLM
from hrpo.evaluation.run import evaluate_checkpoints

TASK = {"name": "arithmetic", "min_terms": 2, "max_terms": 3}


def save(folder: Path, mode: str, seed: int, **settings) -> str:
    """The embedded model as if trained: other weights, strong latents, float64 so that batches change no token."""
    model = HybridCausalLM.from_pretrained("tiny", dtype="float64", latent_mode=mode, r_min=0.6, r_max=0.9)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.005 * torch.randn_like(parameter))
    remembered = {"max_new_tokens": 20, "task": TASK, "seed": 5, "step": 7, "temperature": 1.0, **settings}
    model.settings = dataclasses.replace(model.settings, **remembered)
    model.save_pretrained(folder)
    return str(folder)


def evaluate(*checkpoints, out="out", **options):
    return evaluate_checkpoints(checkpoints, out=out, **options)
