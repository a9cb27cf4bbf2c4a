"""A trained run, decoded once more in another mode than it was trained in: what its latents are good for."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError
from hrpo.config.schema import TrainConfig
from hrpo.evaluate import Answer, evaluate
from hrpo.evaluation.inference import load_for_inference
from hrpo.latent import mode_of
from hrpo.storage.run_dir import damage
from hrpo.tasks import load_task
from hrpo.training.setup import latent_mode_of


def check_decode(run: TrainConfig, modes: Sequence[str]) -> None:
    """Refuse modes that a run cannot be decoded in.

    Raises:
        InputError: one that needs a gate, and the run trains none.

    """
    for mode in modes:
        if mode_of(mode, field="decode").gated and not mode_of(latent_mode_of(run)).gated:
            raise InputError(f"decode: {mode} needs a trained gate, which {run.run_folder.name} has not")


def trained_model(run: TrainConfig) -> Path:
    """Return the checkpoint that a finished run ended with; an earlier one is another model than was evaluated.

    Raises:
        InputError: it is not there any more, or damaged.

    """
    checkpoint = run.run_folder / f"checkpoint-{run.max_steps}"
    problem = damage(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if problem:
        raise InputError(
            f"decode: {checkpoint} is not what the run ended with ({problem}); delete {run.run_folder} and "
            f"{run.run_folder.name}.json, and it is trained again"
        )
    return checkpoint


def decode(run: TrainConfig, modes: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], dict[str, list[Answer]]]]:
    """Answer a finished run's test problems in other modes, with the random numbers of its own evaluation.

    Yields:
        A mode, with numbers and answers by "greedy" and "sampled", as `hrpo.evaluate.evaluate` returns them.

    Raises:
        InputError: see `trained_model`.

    """
    model = load_for_inference(str(trained_model(run)), trust_remote_code=run.model.trust_remote_code)
    task = load_task(run.task, run.seed)
    for mode in modes:
        model.settings = dataclasses.replace(model.settings, latent_mode=mode)
        label = f"{run.run_folder.name} as {mode}:"
        problems = task.test[: run.eval.problems]
        yield mode, *evaluate(model, task, problems, seed=run.seed, batch=run.eval.batch, label=label)
