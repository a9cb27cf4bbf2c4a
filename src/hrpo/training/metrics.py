"""What is logged of an update."""

from typing import Any

from hrpo.advantages import distinct_share, signal_share
from hrpo.common.metrics import CLIPPED, MEAN_LENGTH, NO_SIGNAL, UNIQUE
from hrpo.data import Metrics
from hrpo.model import HybridCausalLM
from hrpo.rewards import or_none
from hrpo.tasks.judge import DELIMITER
from hrpo.trainer import Update

SAMPLES_PER_UPDATE = 4  # completions of one prompt that samples.jsonl keeps


def metrics_of(update: Update, step: int, model: HybridCausalLM, *, samples: bool) -> Metrics:
    """Return the line of metrics.jsonl.

    Args:
        update: what happened.
        step: updates done, this one included.
        model: that was trained.
        samples: completions were sampled, and not written.

    """
    rollout, tokens = update.rollout, int(update.rollout.completion_mask.sum())
    length = rollout.lengths.float().mean().item()
    if not samples:
        return {
            "step": step,
            MEAN_LENGTH: length,
            "tokens": tokens,
            "tokens_per_second": tokens / update.seconds,
            "update_seconds": update.seconds,
            **update.stats,
        }
    G, texts = rollout.group_size, update.completions
    several = len(update.means) > 1
    return {
        **{name: sum(values) / len(values) for name, values in update.context.metrics.items()},
        "step": step,
        **({} if update.rewards.isnan().all() else {"reward": update.rewards.nanmean().item()}),
        **({f"reward/{name}": mean for name, mean in update.means.items()} if several else {}),
        NO_SIGNAL: 1 - signal_share(update.rewards, G),
        UNIQUE: distinct_share(rollout.completion_ids, G),
        "format_rate": sum(text.count(DELIMITER) == 1 for text in texts) / len(texts),
        "repeated_delimiter": sum(text.count(DELIMITER) > 1 for text in texts) / len(texts),
        MEAN_LENGTH: length,
        CLIPPED: rollout.truncated(model.eos_token_ids).float().mean().item(),
        "hidden_ratio": rollout.hidden_ratio().item(),
        "entropy": rollout.entropy().item(),
        **update.stats,
        "tokens": tokens,
        "tokens_per_second": tokens / update.seconds,
        "rollout_seconds": update.sample_seconds,
        "update_seconds": update.seconds - update.sample_seconds,
    }


def samples_of(update: Update, step: int) -> list[dict[str, Any]]:
    """Return lines of samples.jsonl: some completions of the first problem, with what rewards want logged.

    Args:
        update: what happened.
        step: updates done, this one included.

    """
    example, rewards = update.examples[0], or_none(update.rewards)
    texts = update.completions[: min(SAMPLES_PER_UPDATE, update.rollout.group_size)]
    return [
        {
            **{column: values[place] for column, values in update.context.extras.items()},
            "step": step,
            "question": example.question,
            "gold": example.gold,
            "completion": text,
            "reward": reward,
        }
        for place, (text, reward) in enumerate(zip(texts, rewards, strict=False))
    ]
