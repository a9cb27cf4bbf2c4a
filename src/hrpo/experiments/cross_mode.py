"""A trained run, decoded once more in another mode than it was trained in: what its latents are good for."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError
from hrpo.config.schema import EvalConfig, TaskConfig
from hrpo.evaluate import Answer, evaluate
from hrpo.evaluation.inference import load_for_inference
from hrpo.latent import mode_of
from hrpo.storage.run_dir import verify
from hrpo.tasks import load_task


def check_decode(name: str, trained_in: str, modes: Sequence[str]) -> None:
    """Refuse modes that a run cannot be decoded in.

    Args:
        name: of the run.
        trained_in: its latent mode.
        modes: to decode in.

    Raises:
        InputError: one that needs a gate, and the run trains none.

    """
    for mode in modes:
        if mode_of(mode, field="decode").gated and not mode_of(trained_in).gated:
            raise InputError("decode", f"{mode} needs a trained gate, which {name} has not")


def trained_model(folder: Path, updates: int) -> Path:
    """Return the checkpoint that a finished run ended with; an earlier one is another model than was evaluated.

    Raises:
        InputError: it is not there any more, or damaged.

    """
    checkpoint = folder / f"checkpoint-{updates}"
    problem = verify(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if problem:
        raise InputError(
            "decode",
            f"{checkpoint} is not what the run ended with ({problem})",
            f"delete {folder} and {folder.name}.json, and it is trained again",
        )
    return checkpoint


def answer_in_modes(
    checkpoint: Path,
    modes: Sequence[str],
    task: TaskConfig,
    asked: EvalConfig,
    seed: int,
    *,
    trust_remote_code: bool,
) -> Iterator[tuple[str, dict[str, Any], dict[str, list[Answer]]]]:
    """Answer a finished run's test problems in other modes, with the random numbers of its own evaluation.

    Args:
        checkpoint: what the run ended with.
        modes: to decode in.
        task: of the run.
        asked: its evaluation.
        seed: of the run.
        trust_remote_code: run code that comes with the model.

    Yields:
        A mode, with numbers and answers by "greedy" and "sampled", as `hrpo.evaluate.evaluate` returns them.

    """
    model = load_for_inference(str(checkpoint), trust_remote_code=trust_remote_code)
    loaded = load_task(task, seed)
    for mode in modes:
        model.settings = dataclasses.replace(model.settings, latent_mode=mode)
        label = f"{checkpoint.parent.name} as {mode}:"
        problems = loaded.test[: asked.problems]
        yield mode, *evaluate(model, loaded, problems, seed=seed, batch=asked.batch, label=label)
