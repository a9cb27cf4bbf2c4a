"""Advantages, token weights and the objective, on numbers worked out by hand."""

import math

import pytest
import torch

from hrpo import group_advantages, hrpo_loss
from hrpo.advantages import signal_share
from hrpo.loss import token_weights

LN2 = math.log(2)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


# ---- advantages ---------------------------------------------------------------------------------------------


def test_advantages():
    rewards = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0], dtype=torch.float64)
    # (1, 0, 0, 0): mean 1/4, std sqrt((9/16 + 3/16) / 3) = 1/2; (0, 1, 1, 0): mean 1/2, std sqrt(1/3)
    third = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    close(
        group_advantages(rewards, 4),
        [0.75 / 0.5001, *[-0.25 / 0.5001] * 3, 0, 0, 0, 0, -third, third, third, -third],
    )
    unscaled = [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0, -0.5, 0.5, 0.5, -0.5]
    close(group_advantages(rewards, 4, "unscaled"), unscaled)


def test_epsilon_is_added_to_the_standard_deviation():
    rewards = torch.tensor([0, 2e-4], dtype=torch.float64)  # std sqrt(2) * 1e-4
    close(group_advantages(rewards, 2), [-1 / (math.sqrt(2) + 1), 1 / (math.sqrt(2) + 1)])


@pytest.mark.parametrize("scale", ["std", "unscaled"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.5])
def test_a_group_of_equals_gets_zeros(reward, scale):
    assert not group_advantages(torch.full((8,), reward), 8, scale).any()


def test_a_group_of_equal_fractions_gets_zeros():
    assert not group_advantages(torch.full((7,), 0.1), 7).any()  # in float32 their mean is not .1


def test_rewards_may_be_integers_and_any_view():
    columns = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]]).T  # not contiguous: (1, 0, 0, 0), (0, 0, 1, 1)
    close(group_advantages(columns, 4, "unscaled"), [0.75, -0.25, -0.25, -0.25, -0.5, -0.5, 0.5, 0.5])
    assert signal_share(columns, 4) == 1


@pytest.mark.parametrize("group_size", [-2, 0, 1, 3, 16])
def test_refused_group_sizes(group_size):
    with pytest.raises(ValueError, match=f"group_size .* 8 rewards, got {group_size}"):
        group_advantages(torch.ones(8), group_size)


def test_signal_share():
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 0])
    assert signal_share(rewards, 2) == pytest.approx(1 / 3)  # (1, 0) | (1, 1) | (0, 0)
    assert signal_share(rewards, 3) == 1  # (1, 0, 1) | (1, 0, 0)
    assert signal_share(rewards[2:4], 2) == 0


# ---- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sequence", [[1 / 9] * 3, [1 / 3, 0, 0], [1 / 6, 1 / 6, 0]]),
        ("token", [[1 / 6] * 3, [1 / 6, 0, 0], [1 / 6, 1 / 6, 0]]),
    ],
)
def test_token_weights(reduction, expected):
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    weights = token_weights(mask, reduction, torch.float64)
    close(weights, expected)
    close(weights.sum(), 1.0)
    close(token_weights(mask, reduction), expected, 1e-7)


@pytest.mark.parametrize(("reduction", "each"), [("sequence", 0.25), ("token", 0.5)])
def test_an_empty_completion_counts_as_a_completion_but_has_no_tokens(reduction, each):
    close(token_weights(torch.tensor([[1, 1], [0, 0]]), reduction), [[each, each], [0, 0]])
    assert not token_weights(torch.zeros(2, 2), reduction).any()  # no division by 0


# ---- the objective ------------------------------------------------------------------------------------------

# ref / policy is 1/2, 2 | 1, 4, so k3 = ratio - ln ratio - 1 is ln 2 - 1/2, 1 - ln 2 | 0, 3 - 2 ln 2.
POLICY, REFERENCE = [[0.5, 0.25], [0.2, 0.1]], [[0.25, 0.5], [0.2, 0.4]]
ADVANTAGES = torch.tensor([1.5, -2.0], dtype=torch.float64)


def pair():
    policy, reference = (torch.tensor(p, dtype=torch.float64).log() for p in (POLICY, REFERENCE))
    return policy.requires_grad_(), reference


def test_loss_and_gradient():
    policy, reference = pair()
    loss, parts = hrpo_loss(policy, reference, ADVANTAGES, torch.ones(2, 2), beta=0.1)
    kl = (3.5 - 2 * LN2) / 4
    close(parts["policy_loss"], -(1.5 + 1.5 - 2 - 2) / 4)
    close(parts["kl"], kl)
    close(loss.detach(), 0.25 + 0.1 * kl)
    assert set(parts) == {"policy_loss", "kl"}
    assert not any(part.requires_grad for part in parts.values())
    loss.backward()  # each token: (-A + beta (1 - ratio)) / 4
    close(policy.grad, [[(-1.5 + 0.05) / 4, (-1.5 - 0.1) / 4], [2 / 4, (2 - 0.3) / 4]])


def test_loss_of_completions_of_different_lengths():
    policy, reference = pair()
    loss, parts = hrpo_loss(policy, reference, ADVANTAGES, torch.tensor([[1, 1], [1, 0]]), beta=0.1)
    close(parts["policy_loss"], -(1.5 * 0.5 - 2 * 0.5))  # a completion is worth 1/2, however long
    close(parts["kl"], (LN2 - 0.5 + 1 - LN2) / 4)
    loss.backward()
    close(policy.grad, [[(-1.5 + 0.05) / 4, (-1.5 - 0.1) / 4], [2 / 2, 0]])


def test_loss_with_given_weights():
    policy, reference = pair()
    mask = torch.tensor([[1, 1], [1, 0]])
    weights = token_weights(mask, "token", torch.float64)
    loss, parts = hrpo_loss(policy, reference, ADVANTAGES, mask, beta=0.1, weights=weights)
    close(parts["policy_loss"], -(1.5 + 1.5 - 2) / 3)
    close(parts["kl"], 0.5 / 3)
    close(loss.detach(), -1 / 3 + 0.05 / 3)


def test_beta_0():
    policy, reference = pair()
    alone, parts = hrpo_loss(policy, None, ADVANTAGES, torch.ones(2, 2), beta=0)
    assert set(parts) == {"policy_loss"}
    close(alone.detach(), 0.25)
    alone.backward()
    close(policy.grad, [[-1.5 / 4] * 2, [2 / 4] * 2])
    watched, parts = hrpo_loss(policy, reference, ADVANTAGES, torch.ones(2, 2), beta=0)  # reported all the same
    close(watched.detach(), 0.25)
    close(parts["kl"], (3.5 - 2 * LN2) / 4)


def test_beta_needs_a_reference():
    with pytest.raises(ValueError, match=r"beta is 0\.1.* ref_logprobs"):
        hrpo_loss(pair()[0], None, ADVANTAGES, torch.ones(2, 2), beta=0.1)


@pytest.mark.parametrize(
    ("policy_there", "reference_there"),
    [
        (0.0, 0.0),
        (7.0, -3.0),
        (-1000.0, 0.0),  # exp(1000)
        (-math.inf, 0.0),
        (math.nan, 0.0),
        (0.0, math.nan),
    ],
)
def test_masked_positions_have_no_influence(policy_there, reference_there):
    policy, reference = pair()
    with torch.no_grad():
        policy[1, 1], reference[1, 1] = policy_there, reference_there
    loss, parts = hrpo_loss(policy, reference, ADVANTAGES, torch.tensor([[1, 1], [1, 0]]), beta=0.1)
    close(loss.detach(), 0.25 + 0.1 * 0.125)
    close(parts["kl"], 0.125)
    loss.backward()
    close(policy.grad, [[(-1.5 + 0.05) / 4, (-1.5 - 0.1) / 4], [1, 0]])


@pytest.mark.parametrize("scale", ["std", "unscaled"])
def test_a_completion_without_a_reward_is_none_of_its_group(scale):
    """As TRL has it: mean and deviation are of the others, its own advantage is 0."""
    nan = float("nan")
    found = group_advantages(torch.tensor([1.0, nan, 0.0, 2.0, *[nan] * 3, 5.0, *[nan] * 4]), 4, scale)
    three = torch.tensor([1.0, 0.0, 2.0])
    centred = three - three.mean()
    a, b, c = (centred / (three.std() + 1e-4) if scale == "std" else centred).tolist()
    assert found.tolist() == pytest.approx([a, 0, b, c, *[0] * 8], abs=1e-6)
    assert signal_share(torch.tensor([1.0, nan, 0.0, 2.0, *[nan] * 3, 5.0, *[nan] * 4]), 4) == pytest.approx(1 / 3)


def test_large_rewards_have_finite_advantages():
    assert group_advantages(torch.tensor([3e38, -3e38], dtype=torch.float64), 2).tolist() == pytest.approx(
        [2**-0.5, -(2**-0.5)]
    )
