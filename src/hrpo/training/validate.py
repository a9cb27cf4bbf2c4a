"""Settings that cannot train: numbers outside the bounds in their types, and those that do not go together."""

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
    algorithm, rollout = algorithm_of(config.algorithm), config.rollout
    latent = latent_of(config.algorithm, config.latent)
    engine_of(rollout.engine)
    mode = mode_of(latent.mode, latent.mixed_in, "latent.mode")
    rules = [
        (
            is_installed(config.report_to),
            f"report_to: {config.report_to} is not installed; pip install {config.report_to}",
        ),
        (
            0 < latent.r_min <= latent.r_max < 1,
            f"latent.r_min: needs 0 < r_min <= r_max < 1, got {latent.r_min} and {latent.r_max}",
        ),
        (
            mode.trains,
            f"latent.mode: {latent.mode} is training-free: evaluate a model in it; to train, choose another",
        ),
        (
            config.loss.policy != "sampler" or mode.source != "hidden" or rollout.top_k <= SHOWN_CANDIDATES,
            f"loss.policy: sampler needs all candidates, of which runs on hidden states keep {SHOWN_CANDIDATES}; "
            f"set rollout.top_k to at most that, or 0",
        ),
        (
            config.loss.policy == "model" or not algorithm.has_ratio,
            f"loss.policy: {config.algorithm} compares log-probabilities with those recorded while sampling, which are "
            "of the model's unscaled logits; set it to model",
        ),
        (
            config.sharding == "none" or config.model.quantization == "none",
            "sharding: quantized weights cannot be sharded; set sharding or model.quantization to none",
        ),
        (
            config.keep.best == 0 or config.keep.problems > 0,
            "keep.best: nothing tells which are best; set keep.problems to how many training problems shall",
        ),
        (
            config.keep.best == 0 or config.keep.save_total_limit > 0,
            "keep.best: all checkpoints stay while keep.save_total_limit is 0; set it to how many shall",
        ),
    ]
    wrong = list(outside_types(config))
    wrong += [message for holds, message in rules if not holds]
    if wrong:
        try:
            check_task(config.task)
        except InputError as error:
            wrong.append(str(error))
        raise InputError("; also ".join(wrong))
