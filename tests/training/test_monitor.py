"""Guards, by histories made by hand: each fires, once, and none does on a healthy run."""

import re

import pytest
import torch

from hrpo.logprobs import broken_replay, replay_errors
from hrpo.training.monitor import GUARDS, active, onsets, skipped_in_a_row

# The quickstart's means over ten updates, at the start, in the middle and at the end.
HEALTHY = [
    {
        "reward": 0.45,
        "frac_reward_zero_std": 0.03,
        "completions/mean_length": 13.2,
        "entropy": 0.15,
        "kl": 0.003,
        "repeated_delimiter": 0.052,
    },
    {
        "reward": 0.80,
        "frac_reward_zero_std": 0.28,
        "completions/mean_length": 23.8,
        "entropy": 0.037,
        "kl": 0.022,
        "repeated_delimiter": 0.039,
    },
    {
        "reward": 0.91,
        "frac_reward_zero_std": 0.62,
        "completions/mean_length": 26.1,
        "entropy": 0.015,
        "kl": 0.023,
        "repeated_delimiter": 0.014,
    },
]
SICK = {
    "entropy": ({"entropy": 0.001}, r"entropy is 0\.001 nats a token.*rollout\.temperature"),
    "longer": ({"completions/mean_length": 60}, "have grown from 13 to 60 tokens.*samples"),
    "shorter": ({"completions/mean_length": 2}, "have shrunk from 13 to 2 tokens.*samples"),
    "signal": ({"frac_reward_zero_std": 0.98}, r"2% of the groups have a signal \(mean reward 0\.91\).*hrpo check"),
    "kl": ({"kl": 3.0}, r"is 3 nats a token.*loss\.beta"),
    "repeated delimiter": ({"repeated_delimiter": 0.5}, r"50% of the completions.*task\.rewards"),
    "replay": ({"sampling/sampling_logp_difference/p99": 0.7}, r"0\.7 or more.*float32"),
}


def history(*phases):
    return [dict(phase) for phase in phases for _ in range(10)]


def test_a_healthy_run_has_no_warning():
    updates = history(*HEALTHY)
    assert [line for at in range(len(updates) + 1) for line in onsets(updates[:at])] == []


@pytest.mark.parametrize(("change", "said"), SICK.values(), ids=SICK)
def test_each_warns_once(change, said):
    updates = history(*HEALTHY, *[{**HEALTHY[-1], **change}] * 3)
    warned = [line for at in range(len(updates) + 1) for line in onsets(updates[:at])]
    assert len(warned) == 1
    (line,) = active(updates).values()
    assert re.search(said, line)
    well_again = history(*HEALTHY, {**HEALTHY[-1], **change}, *[HEALTHY[-1]] * 2)
    assert active(well_again) == {}


def test_every_guard_has_been_made_to_warn():
    warned = set()
    for change, _ in SICK.values():
        warned |= active(history(*HEALTHY, *[{**HEALTHY[-1], **change}] * 2)).keys()
    assert warned == GUARDS.keys()


def test_one_odd_update_warns_of_nothing_but_its_replay():
    for change, _ in list(SICK.values())[:-1]:
        odd = {name: min(value, 100 * HEALTHY[-1][name]) for name, value in change.items()}
        assert active([*history(*HEALTHY), {**HEALTHY[-1], **odd}]) == {}


def test_metrics_that_a_run_has_not():
    """Without a KL, in supervised fine-tuning, and for the first updates."""
    assert active([]) == {}
    assert active([{"nll": 1.0, "completions/mean_length": 20.0}] * 40) == {}
    assert active([{"frac_reward_zero_std": 1, "reward": 0.0}] * 9) == {}
    assert active([{"frac_reward_zero_std": 1, "reward": 0.0}] * 10).keys() == {"signal"}


def test_replay_errors():
    gaps = torch.arange(1.0, 201.0) / 1000
    errors = replay_errors(gaps)
    assert errors["sampling/sampling_logp_difference/max"] == pytest.approx(0.2)
    assert errors["sampling/sampling_logp_difference/mean"] == pytest.approx(0.1005)
    assert errors["sampling/sampling_logp_difference/p99"] == pytest.approx(0.198)
    assert replay_errors(torch.tensor([0.5]))["sampling/sampling_logp_difference/p99"] == 0.5


def test_broken_replay():
    fine = {"sampling/sampling_logp_difference/max": 0.0009, "sampling/sampling_logp_difference/mean": 1e-5}
    assert broken_replay(fine, exact=True) is None
    assert "differ by up to 0.0011" in broken_replay(
        {**fine, "sampling/sampling_logp_difference/max": 0.0011}, exact=True
    )
    rounded = {"sampling/sampling_logp_difference/max": 3.0, "sampling/sampling_logp_difference/mean": 0.09}
    assert broken_replay(rounded, exact=False) is None
    assert "0.11 on average" in broken_replay({**rounded, "sampling/sampling_logp_difference/mean": 0.11}, exact=False)
    assert broken_replay({}, exact=True) is None
    nan = float("nan")  # is skipped, not reported as a bug
    assert (
        broken_replay(
            {"sampling/sampling_logp_difference/max": nan, "sampling/sampling_logp_difference/mean": nan}, exact=True
        )
        is None
    )


@pytest.mark.parametrize("exact", [True, False])
def test_rounding_is_told_from_a_mistake(exact):
    gaps = {"sampling/sampling_logp_difference/max": 0.5, "sampling/sampling_logp_difference/mean": 0.2}
    assert "report it" in broken_replay(gaps, exact=exact)
    assert "report it" in broken_replay(
        gaps,
        exact=exact,
        rounded={"sampling/sampling_logp_difference/max": 0.01, "sampling/sampling_logp_difference/mean": 0.005},
    )
    said = broken_replay(
        gaps,
        exact=exact,
        rounded={"sampling/sampling_logp_difference/max": 0.1, "sampling/sampling_logp_difference/mean": 0.1},
    )
    assert "report it" not in said
    assert "alone makes 0.1; lower optimizer.lr" in said
    assert ("float32" in said) != exact


def test_skipped_in_a_row():
    assert skipped_in_a_row([]) == 0
    assert skipped_in_a_row([{"skipped": 1}, {"skipped": 0}, {"skipped": 1}, {"skipped": 1}]) == 2
    assert skipped_in_a_row([{"skipped": 1}, {}]) == 0
