"""Law 3 over processes: a batch shared out between two gives the completions and the gradient of one.

The trainer runs in one process; this holds for the functions that it is made of.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from models import PROMPTS, SAMPLER, random_model

from hrpo import generate, hrpo_loss, replay
from hrpo.loss import token_weights
from hrpo.rollout import sample_key

G = 4
ADVANTAGES = torch.linspace(-1, 1, len(PROMPTS) * G, dtype=torch.float64)


def share(arch: str, prompts: list[int]) -> tuple[list[list[int]], float, dict[str, torch.Tensor]]:
    """Completions, loss and gradients of some of the batch's prompts, weighted as part of the whole batch."""
    model = random_model(arch)
    keys = [sample_key("batch", b, g) for b in prompts for g in range(G)]
    rollout = generate(model, [PROMPTS[b] for b in prompts], group_size=G, sample_keys=keys, **SAMPLER)
    logprobs, reference = replay(model, rollout)
    rows = [b * G + g for b in prompts for g in range(G)]
    mask = rollout.completion_mask
    weights = token_weights(mask, dtype=torch.float64) * len(rows) / len(ADVANTAGES)  # mean over the whole batch
    loss, _ = hrpo_loss(logprobs, reference, ADVANTAGES[rows], mask, beta=0.1, weights=weights)
    loss.backward()
    completions = [ids[:n].tolist() for ids, n in zip(rollout.completion_ids, rollout.lengths, strict=True)]
    return completions, loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox"])  # no rounding to float32 inside
def test_two_processes_equal_one(arch):
    completions, loss, gradients = share(arch, [0, 1, 2])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(share, [arch, arch], [[0], [1, 2]])
    assert first[0] + second[0] == completions
    assert first[1] + second[1] == pytest.approx(loss, abs=1e-8)
    for name, gradient in gradients.items():
        torch.testing.assert_close(first[2][name] + second[2][name], gradient, atol=1e-8, rtol=0)
