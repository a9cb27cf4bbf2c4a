"""From where to where the whole numbers of settings and options may be."""

from collections.abc import Mapping

COUNT = 10**9  # of what is only counted, or taken from what there is
TOKENS = 10**7  # of a text: longer than any model's context
BATCH = 10**4  # of what is made or held at once
SHOTS = 10**4  # worked examples before a question
RANK = 10**4  # of adapters: above the width of most models
SEED = 2**32 - 1  # the largest that numpy takes
MIN_TEMPERATURE = 1e-6  # far below, logits over it overflow float32

SETTINGS = {
    "max_steps": (1, COUNT),
    "save_every": (1, COUNT),
    "max_tokens_per_microbatch": (0, COUNT),
    "task.num_fewshot": (0, SHOTS),
    "task.max_solution_chars": (0, COUNT),
    "model.lora_rank": (0, RANK),
    "model.lora_alpha": (1, COUNT),
    "rollout.prompts_per_step": (1, BATCH),
    "rollout.max_new_tokens": (1, TOKENS),
    "rollout.max_prompt_tokens": (0, TOKENS),
    "rollout.top_k": (0, COUNT),
    "sft.batch": (1, BATCH),
    "check.prompts": (0, BATCH),
    "check.patience": (0, COUNT),
    "check.max_skipped": (1, COUNT),
    "keep.save_total_limit": (0, COUNT),
    "keep.best": (0, COUNT),
    "keep.problems": (0, 10**4),  # some are drawn for each
    "eval.problems": (0, COUNT),
    "eval.batch": (1, BATCH),
}
# Options of the commands that evaluate; `samples` of a problem are decoded and kept together.
OPTIONS = {
    "problems": (0, COUNT),
    "samples": (0, 10**4),
    "shots": (0, SHOTS),
    "max_new_tokens": (0, TOKENS),
    "batch": (1, BATCH),
    "seed": (0, SEED),
    "k": (1, 10**4),
}


def outside(name: str, value: float, least: float, most: float) -> str:
    """Return what is wrong with a number, beginning with its name; nothing where it lies within its bounds."""
    if not value >= least:  # NaN is not
        return f"{name}: must be at least {least:g}, got {value}"
    return "" if value <= most else f"{name}: must be at most {most:,}, got {value}"


def outside_of(bounds: Mapping[str, tuple[float, float]], values: Mapping[str, float]) -> list[str]:
    """Return what is wrong with each of some numbers; see `outside`."""
    return [said for name, value in values.items() if (said := outside(name, value, *bounds[name]))]
