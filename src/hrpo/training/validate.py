"""Settings that cannot train: numbers outside the bounds in their types, and those that do not go together."""

from collections.abc import Iterator

from hrpo.common.errors import InputError
from hrpo.config.bounds import outside_types
from hrpo.config.schema import TrainConfig
from hrpo.data import SHOWN_CANDIDATES
from hrpo.engines import engine_of
from hrpo.latent import mode_of
from hrpo.tasks import check_task
from hrpo.training.setup import algorithm_of, latent_of
from hrpo.training.trackers import is_installed


def check_config(config: TrainConfig) -> None:
    """Refuse settings that cannot train.

    Raises:
        InputError: names each of them, and what it may be; then also what is wrong with the task's.

    """
    algorithm_of(config.algorithm)
    engine_of(config.rollout.engine)
    wrong = [*outside_types(config), *_contradictions(config)]
    if wrong:
        try:
            check_task(config.task)
        except InputError as error:
            wrong.append(error)
        raise InputError.joined(wrong)


def _contradictions(config: TrainConfig) -> Iterator[InputError]:
    """Yield what does not go together."""
    algorithm, rollout = algorithm_of(config.algorithm), config.rollout
    latent = latent_of(config.algorithm, config.latent)
    mode = mode_of(latent.mode, latent.mixed_in, "latent.mode")
    if not is_installed(config.report_to):
        yield InputError("report_to", f"{config.report_to} is not installed", f"pip install {config.report_to}")
    if not 0 < latent.r_min <= latent.r_max < 1:
        yield InputError("latent.r_min", f"needs 0 < r_min <= r_max < 1, got {latent.r_min} and {latent.r_max}")
    if not mode.trains:
        yield InputError(
            "latent.mode",
            f"{latent.mode} is training-free: evaluate a model in it",
            "to train, choose another",
        )
    if config.loss.policy == "sampler" and mode.source == "hidden" and rollout.top_k > SHOWN_CANDIDATES:
        yield InputError(
            "loss.policy",
            f"sampler needs all candidates, of which runs on hidden states keep {SHOWN_CANDIDATES}",
            "set rollout.top_k to at most that, or 0",
        )
    if config.loss.policy != "model" and algorithm.has_ratio:
        yield InputError(
            "loss.policy",
            f"{config.algorithm} compares log-probabilities with those recorded while "
            "sampling, which are of the model's unscaled logits",
            "set it to model",
        )
    if config.sharding != "none" and config.model.quantization != "none":
        fix = "set sharding or model.quantization to none"
        yield InputError("sharding", "quantized weights cannot be sharded", fix)
    if config.keep.best and not config.keep.problems:
        yield InputError(
            "keep.best",
            "nothing tells which are best",
            "set keep.problems to how many training problems shall",
        )
    if config.keep.best and not config.keep.save_total_limit:
        yield InputError(
            "keep.best",
            "all checkpoints stay while keep.save_total_limit is 0",
            "set it to how many shall",
        )
