"""What to change when rewards teach nothing: signs of a run, and the options that help."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hrpo.common.errors import StoppedError
from hrpo.common.metrics import CLIPPED, NO_SIGNAL, UNIQUE
from hrpo.config.schema import Auto, ModelConfig, RolloutConfig, TaskConfig, length_limit
from hrpo.models.turns import NO_END


@dataclass(frozen=True)
class Signs:
    """What some groups of completions have in common; shares in 0..1.

    reward: mean reward, whose most is the sum of the weights of `task.rewards`.
    signal: groups whose rewards differ.
    format_rate: completions with exactly one delimiter.
    truncation_rate: completions cut off at the length limit.
    distinct: different completions of a group, over its size.
    """

    reward: float
    signal: float
    format_rate: float
    truncation_rate: float
    distinct: float

    @classmethod
    def of_updates(cls, updates: Sequence[Mapping[str, float]]) -> "Signs":
        """Return the mean of what was logged in some updates."""

        def mean(name: str) -> float:
            values = [row[name] for row in updates if name in row]
            return sum(values) / len(values) if values else 0.0

        return cls(
            reward=mean("reward"),
            signal=1 - mean(NO_SIGNAL),
            format_rate=mean("format_rate"),
            truncation_rate=mean(CLIPPED),
            distinct=mean(UNIQUE),
        )


def advice(signs: Signs, rollout: RolloutConfig, task: TaskConfig, ends: Sequence[str] = ("EOS",)) -> list[str]:
    """Return what to change, most important first, each naming its option; nothing where all is well.

    Args:
        signs: of the run.
        rollout: how it samples.
        task: its problems.
        ends: the tokens that end a completion, as text.

    """
    shots = task.num_fewshot
    reward = signs.reward / (sum(weight for weight in task.rewards.values() if weight > 0) or 1.0)
    tips = []
    if not ends:
        tips.append(NO_END)
    elif signs.truncation_rate > 0.2:
        cut = f"{signs.truncation_rate:.0%} of the completions are cut off"
        longer = f"raise rollout.max_new_tokens (now {length_limit(rollout.max_new_tokens, None)})"
        named = ", ".join(map(repr, ends))
        tips.append(
            f"{cut} before an answer: {longer}"
            if signs.truncation_rate < 1
            else f"{cut}, none with what ends one ({named}): if the model ends its turns with another token, add that "
            f"to eos_token_id in generation_config.json; else {longer}"
        )
    if signs.format_rate < 0.5:
        shown = f"in spite of {shots} worked examples" if shots else "and none is shown how"
        examples = "" if shots else "show worked examples (task.num_fewshot 2), or "
        tips.append(
            f"only {signs.format_rate:.0%} of the completions have exactly one ####, {shown}: {examples}begin with a "
            "warm start (hrpo sft) and train on from it (model.name)"
        )
    if signs.signal >= 0.25:
        return tips
    groups = f"{signs.signal:.0%} of the groups have a signal"
    if reward > 0.9:
        tips.append(f"{groups} since nearly all rewards are full already: take harder problems (task)")
    elif signs.distinct < 0.5:
        tips.append(
            f"{groups} and completions of a group are much alike ({signs.distinct:.0%} differ): "
            f"raise rollout.temperature (now {rollout.temperature:g})"
        )
    elif reward < 0.05 and signs.format_rate >= 0.5:
        tips.append(
            f"{groups}: the format is right but hardly an answer is: take easier problems (task), show "
            f"worked examples (task.num_fewshot, now {shots}), begin with a warm start on worked solutions (hrpo sft), "
            f"or raise rollout.group_size (now {rollout.group_size}) so that a group holds a rare success"
        )
    elif signs.format_rate >= 0.5:
        tips.append(f"{groups}: raise rollout.group_size (now {rollout.group_size}) or rollout.temperature")
    return tips


def memory_advice(peak: int, available: int, model: ModelConfig, gradient_checkpointing: bool | Auto) -> list[str]:
    """Return what to change where the estimated peak, in bytes, comes near what there is."""
    if peak <= 0.9 * available:
        return []
    ways = ", ".join(_ways_to_less_memory(model, gradient_checkpointing))
    return [f"the run may need {peak / 1e9:.1f} GB of {available / 1e9:.1f} GB: {ways}"]


def _ways_to_less_memory(model: ModelConfig, gradient_checkpointing: bool | Auto) -> list[str]:
    ways = ["lower max_tokens_per_microbatch"]
    if gradient_checkpointing is not True:
        ways.append("set gradient_checkpointing to true")
    if model.lora_rank == 0:
        ways.append("train adapters (model.lora_rank 32)")
    if model.dtype != "bfloat16":
        ways.append("set model.dtype to bfloat16")
    return ways


@contextlib.contextmanager
def told_out_of_memory(model: ModelConfig, gradient_checkpointing: bool | Auto) -> Iterator[None]:
    """Within it, an accelerator that has no memory left is told in one line, with what to change.

    Raises:
        StoppedError: in place of PyTorch's error.

    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        ways = ", ".join(_ways_to_less_memory(model, gradient_checkpointing))
        first = str(error).split(". ")[0]
        raise StoppedError(f"out of memory ({first}): {ways}, or lower rollout.prompts_per_step") from error
