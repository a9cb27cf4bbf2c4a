"""A run's metrics: TRL's names where TRL has them, and reading metrics.jsonl, also of version 0.1 with other names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hrpo.common.files import read_lines

MEAN_LENGTH = "completions/mean_length"
CLIPPED = "completions/clipped_ratio"
UNIQUE = "completions/unique_ratio"
NO_SIGNAL = "frac_reward_zero_std"
LOGP_GAP = "sampling/sampling_logp_difference"  # /max, /mean, and /p99, below which 99 of 100 are

RENAMED = {
    "length": MEAN_LENGTH,
    "truncation_rate": CLIPPED,
    "distinct": UNIQUE,
    "replay_error": f"{LOGP_GAP}/max",
    "replay_error_mean": f"{LOGP_GAP}/mean",
    "replay_error_99": f"{LOGP_GAP}/p99",
}


def with_trl_names(
    metrics: Mapping[str, Any], without: Callable[[Any], Any] = lambda share: 1 - share
) -> dict[str, Any]:
    """Return metrics by the names of this version.

    Args:
        metrics: by name; in lines of 0.1 "signal" is the share of groups whose rewards differ.
        without: turns that share, or shares, into those of the other groups.

    """
    named = {RENAMED.get(name, name): value for name, value in metrics.items() if name != "signal"}
    if "signal" in metrics:
        named[NO_SIGNAL] = without(metrics["signal"])
    return named


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what metrics.jsonl of a run folder holds, a dict for each update.

    Raises:
        InputError: the file is damaged.

    """
    return [with_trl_names(row) for row in read_lines(folder / "metrics.jsonl")]
