"""Signs that a run is going wrong, read off its metrics: each a warning with a number and a hint.

A guard is a function of the updates so far, newest last. It returns one line while its sign is there, None otherwise.
Means are over ten updates, so that a single odd one does not warn; what grows or shrinks is measured against the run's
own first ten.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hrpo.common.metrics import LOGP_GAP, MEAN_LENGTH, NO_SIGNAL
from hrpo.data import Metrics
from hrpo.logprobs import QUANTILE_BF16

Guard = Callable[[Sequence[Metrics]], str | None]

WINDOW = 10  # updates that a mean is over
LONGER = 4.0  # times the first length; the embedded model triples it when it learns to write its steps down
SHORTER = 0.25
ENTROPY = 0.003  # nats a token; the quickstart ends at .015, and four groups in ten still have a signal
SIGNAL = 0.05  # of the groups
KL = 1.0  # nats a token: every token e times as likely, or as unlikely, as it was
REPEATED = 0.25  # of the completions


def active(updates: Sequence[Metrics]) -> dict[str, str]:
    """Return the guards whose sign is there after the newest update: name -> line."""
    return {name: line for name, guard in GUARDS.items() if (line := guard(updates)) is not None}


def onsets(updates: Sequence[Metrics]) -> Iterator[str]:
    """Yield the lines of guards whose sign is there after the newest update, and was not before it."""
    before = active(updates[:-1])
    yield from (line for name, line in active(updates).items() if name not in before)


def _recent(updates: Sequence[Metrics], name: str) -> float | None:
    """Return the mean of the last updates; None while there are too few, or the run has no such metric."""
    values = [row[name] for row in updates[-WINDOW:] if name in row]
    return sum(values) / WINDOW if len(values) == WINDOW else None


def _growth(updates: Sequence[Metrics], name: str) -> tuple[float, float] | None:
    """Return the means of the first and of the last updates."""
    if len(updates) < 2 * WINDOW:
        return None
    first, last = _recent(updates[:WINDOW], name), _recent(updates, name)
    return None if first is None or last is None else (first, last)


def _length(updates: Sequence[Metrics]) -> str | None:
    lengths = _growth(updates, MEAN_LENGTH)
    if lengths is None:
        return None
    first, last = lengths
    if last > LONGER * first:
        return (
            f"completions have grown from {first:.0f} to {last:.0f} tokens: read samples.jsonl for loops; "
            "raise loss.beta, or lower optimizer.lr"
        )
    if last < SHORTER * first:
        return (
            f"completions have shrunk from {first:.0f} to {last:.0f} tokens: read samples.jsonl, the model may be "
            "guessing; raise loss.beta, or lower optimizer.lr"
        )
    return None


def _signal(updates: Sequence[Metrics]) -> str | None:
    without, reward = _recent(updates, NO_SIGNAL), _recent(updates, "reward")
    if without is None or reward is None or 1 - without >= SIGNAL:
        return None
    return (
        f"{1 - without:.0%} of the groups have a signal (mean reward {reward:.2g}), so next to nothing is learnt; "
        "hrpo check with these settings says what to change"
    )


def _replay(updates: Sequence[Metrics]) -> str | None:
    quantile = updates[-1].get(f"{LOGP_GAP}/p99", 0.0) if updates else 0.0
    if quantile <= QUANTILE_BF16:
        return None
    return (
        f"one token in a hundred is replayed with a log-probability {quantile:.2g} or more from that sampled: "
        "the gradient is of a somewhat other policy; set model.dtype to float32 if the reward does not rise"
    )


def _of_mean(name: str, sick: Callable[[float], bool], line: str) -> Guard:
    """Return a guard of the mean of a metric, which its line has a place for."""

    def guard(updates: Sequence[Metrics]) -> str | None:
        mean = _recent(updates, name)
        return None if mean is None or not sick(mean) else line.format(mean)

    return guard


GUARDS: dict[str, Guard] = {
    "entropy": _of_mean(
        "entropy",
        lambda entropy: entropy < ENTROPY,
        "entropy is {:.2g} nats a token: the model says the same whatever it samples, and explores no more; "
        "raise rollout.temperature or loss.beta, or lower optimizer.lr",
    ),
    "length": _length,
    "signal": _signal,
    "kl": _of_mean(
        "kl",
        lambda kl: kl > KL,
        "the divergence from the initial model is {:.2g} nats a token: raise loss.beta, or lower optimizer.lr, "
        "optimizer.gate_lr and optimizer.lambda_lr",
    ),
    "repeated_delimiter": _of_mean(
        "repeated_delimiter",
        lambda share: share > REPEATED,
        "{:.0%} of the completions write #### more than once, which is never right: give a little for the format "
        "(task.rewards, format), or begin with a warm start (hrpo sft)",
    ),
    "replay": _replay,
}


def skipped_in_a_row(updates: Sequence[dict[str, Any]]) -> int:
    """Return how many of the newest updates, one after the other, were skipped."""
    count = 0
    for update in reversed(updates):
        if not update.get("skipped"):
            break
        count += 1
    return count
