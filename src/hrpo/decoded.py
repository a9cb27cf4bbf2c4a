"""A trained run, decoded once more in another mode than it was trained in: what its latents are good for."""

import dataclasses
from typing import Any

from hrpo.checkpoints import model_in
from hrpo.config import LatentMode, TrainConfig
from hrpo.errors import InputError
from hrpo.evaluate import Answer, evaluate
from hrpo.inference import load_for_inference
from hrpo.latent import MODES
from hrpo.tasks import load_task


def check_decode(run: TrainConfig, modes: list[LatentMode]) -> None:
    """Refuse modes that a run cannot be decoded in.

    Raises:
        InputError: one that needs a gate, and the run trains none.

    """
    for mode in modes:
        if MODES[mode].gated and not MODES[run.latent.mode].gated:
            raise InputError(f"decode: {mode} needs a trained gate, which {run.run_folder.name} has not")


def decode(run: TrainConfig, mode: LatentMode) -> tuple[dict[str, Any], dict[str, list[Answer]]]:
    """Answer a finished run's test problems in another mode, with the random numbers of its own evaluation.

    Returns:
        Numbers and answers, by "greedy" and "sampled", as `hrpo.evaluate.evaluate` does.

    Raises:
        InputError: the run's folder has no whole checkpoint.

    """
    model = load_for_inference(model_in(str(run.run_folder)), trust_remote_code=run.model.trust_remote_code)
    model.settings = dataclasses.replace(model.settings, latent_mode=mode)
    task = load_task(run.task, run.seed)
    return evaluate(
        model,
        task,
        task.test[: run.eval.problems],
        seed=run.seed,
        batch=run.eval.batch,
        label=f"{run.run_folder.name} as {mode}:",
    )
