"""The gate's equations, on numbers worked out by hand."""

import math

import pytest
import torch

from hrpo import HybridGate, latent_embedding


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


# Two channels: W_r e + b_r = (0, ln 3), so r = (1/2, 3/4); W_i e + b_i = (ln 4, -ln 3), so i = (4/5, 1/4).
# With u = (.81, 1/16): a = u^r = (.9, 1/8).
E, H = [1.0, -2.0], [0.5, 4.0]
R, INPUT, U, A = (1 / 2, 3 / 4), (4 / 5, 1 / 4), (0.81, 1 / 16), (0.9, 1 / 8)


@pytest.fixture
def by_hand():
    gate = HybridGate(2).double()
    values = {
        "reset_gate.weight": [[0.5, 0.25], [0.0, -1.0]],
        "reset_gate.bias": [0.0, math.log(3) - 2],
        "input_gate.weight": [[2.0, 1.0], [3.0, 1.0]],
        "input_gate.bias": [math.log(4), -1 - math.log(3)],
        "Lambda": [-math.log(u ** (-1 / 8) - 1) for u in U],
    }
    gate.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})
    return gate


def saturated(u: float, width: int = 3) -> HybridGate:
    """A float32 gate with r = 1 and i = 1/2, so that a = u."""
    gate = HybridGate(width)
    with torch.no_grad():
        gate.reset_gate.bias.fill_(100)
        gate.input_gate.weight.zero_()
        gate.Lambda.copy_(gate.lambda_of(torch.full((width,), u)))
    return gate


def test_equations(by_hand):
    e, h = (torch.tensor(x, dtype=torch.float64) for x in (E, H))
    out, a = by_hand(e, h)
    close(a, A)
    close(out, [0.9 + math.sqrt(0.19 + 1e-8) * 0.8 * 0.5, -2 / 8 + math.sqrt(63 / 64 + 1e-8) * 1])
    stacked, _ = by_hand(e.expand(2, 3, 2), h.expand(2, 3, 2))  # any leading shape
    close(stacked, out.detach().expand(2, 3, 2))


def test_gradients(by_hand):
    e, h = (torch.tensor([x], dtype=torch.float64) for x in (E, H))  # neither asks for a gradient
    out, _ = by_hand(e, h)
    out.sum().backward()
    root = [math.sqrt(1 - a * a + 1e-8) for a in A]
    into_i = [root[d] * INPUT[d] * (1 - INPUT[d]) * H[d] for d in range(2)]  # sigmoid' = i (1 - i)
    into_a = [E[d] - A[d] / root[d] * INPUT[d] * H[d] for d in range(2)]
    into_r = [into_a[d] * A[d] * math.log(U[d]) * R[d] * (1 - R[d]) for d in range(2)]  # a = u^r
    into_lambda = [into_a[d] * A[d] * 8 * R[d] * (1 - U[d] ** (1 / 8)) for d in range(2)]
    close(by_hand.input_gate.bias.grad, into_i)
    close(by_hand.input_gate.weight.grad, [[into_i[d] * E[j] for j in range(2)] for d in range(2)])
    close(by_hand.reset_gate.bias.grad, into_r)
    close(by_hand.reset_gate.weight.grad, [[into_r[d] * E[j] for j in range(2)] for d in range(2)])
    close(by_hand.Lambda.grad, into_lambda)


def test_epsilon_keeps_the_latent_when_a_is_1():
    gate = saturated(0.5)
    with torch.no_grad():
        gate.Lambda.fill_(torch.inf)
    out, a = gate(torch.ones(3), torch.full((3,), 2e4))
    assert torch.equal(a, torch.ones(3))
    close(out, [2.0] * 3, 1e-5)  # 1 + sqrt(1e-8) * 1/2 * 20,000


def test_lambda_of_is_the_inverse_of_a_at_r_1():
    u = torch.tensor([0.01, 0.5, 0.95, 0.99, 0.999, 0.9999], dtype=torch.float64)
    gate = HybridGate(len(u)).double()
    with torch.no_grad():
        gate.reset_gate.bias.fill_(100)  # r = 1 within 1e-43
        gate.Lambda.copy_(gate.lambda_of(u))
    zeros = torch.zeros(len(u), dtype=torch.float64)
    close(gate(zeros, zeros)[1], u)
    close(HybridGate.lambda_of(torch.tensor(2.0**-8, dtype=torch.float64)), 0.0)  # u^(-1/8) - 1 = 1
    close(HybridGate.lambda_of(torch.tensor(4.0**-8, dtype=torch.float64)), -math.log(3))


@pytest.mark.parametrize(("r_min", "r_max"), [(0.99, 0.999), (0.95, 0.999), (0.6, 0.9)])
def test_initial_ranges(r_min, r_max):
    torch.manual_seed(0)
    gate = HybridGate(256, r_min, r_max)
    bound = 1 / 16  # 1 / sqrt(256)
    for linear in (gate.reset_gate, gate.input_gate):
        assert linear.weight.abs().max() <= bound
        assert linear.weight.max() > 0.99 * bound
        assert linear.weight.min() < -0.99 * bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # of a uniform draw
        assert not linear.bias.any()
    assert not torch.equal(gate.reset_gate.weight, gate.input_gate.weight)
    with torch.no_grad():
        gate.reset_gate.bias.fill_(100)
        _, a = gate(torch.zeros(256), torch.zeros(256))
    assert r_min - 1e-6 <= a.min() < r_min + 0.1 * (r_max - r_min)
    assert r_max - 0.1 * (r_max - r_min) < a.max() <= r_max + 1e-6
    assert a.mean().item() == pytest.approx((r_min + r_max) / 2, abs=0.06 * (r_max - r_min))


@pytest.mark.parametrize(
    ("r_min", "r_max"), [(0, 0.9), (-0.1, 0.9), (0.9, 1), (0.9, 1.1), (0.95, 0.9), (math.nan, 0.9), (0.9, math.nan)]
)
def test_refused_ranges(r_min, r_max):
    with pytest.raises(ValueError, match="r_min and r_max"):
        HybridGate(4, r_min, r_max)


def test_one_point_range():
    gate = HybridGate(4, 0.9, 0.9)
    close(gate.Lambda.detach(), [-math.log(0.9 ** (-1 / 8) - 1)] * 4, 1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_inputs_are_computed_in_float32(autocast):
    gate = saturated(0.999)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, a = gate(torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16))
    assert a.dtype == out.dtype == torch.float32
    close(a, torch.full((2, 3), 0.999), 1e-6)
    close(out, torch.full((2, 3), 0.999), 1e-6)  # bfloat16 has 1 and .9961 only


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    gate, embeds, latents = HybridGate(32), torch.randn(5, 32), torch.randn(5, 32)
    expected = gate(embeds, latents)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gate(embeds, latents)
        assert gate.reset_gate(embeds).dtype == torch.bfloat16  # autocast is on
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_latent_embedding():
    table = torch.tensor([[1.0, 0.0], [0.0, 10.0], [5.0, 5.0]])
    probs = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    norm = math.sqrt(0.52)  # .6^2 + .4^2
    close(latent_embedding(probs, table), [[0.6 / norm, 4 / norm], [5.0, 5.0]], 1e-6)
    close(latent_embedding(probs.expand(2, 2, 3), table)[1, 0], [0.6 / norm, 4 / norm], 1e-6)
    half = latent_embedding(probs, table.bfloat16())  # frozen weights in bfloat16
    assert half.dtype == torch.float32
    close(half[0], [0.6 / norm, 4 / norm], 1e-6)
