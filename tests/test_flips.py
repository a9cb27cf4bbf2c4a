"""Tokens that rounding flips between two ways to compute the same completions: none in float64, hardly one in fp32."""

import dataclasses
import sys
from pathlib import Path

import pytest
from models import PROMPTS, random_model

from hrpo import generate

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import flips


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_flips(dtype):
    counted = flips.count(dtype, prompts=340)
    assert all(tokens >= 30_000 for tokens, _ in counted.values())
    most = 0 if dtype == "float64" else 3  # of 30,000
    assert all(flipped <= most for _, flipped in counted.values()), counted


def test_what_is_counted():
    a = generate(random_model("gpt2"), PROMPTS[:1], group_size=2, max_new_tokens=6, delimiter=[60], eos_token_id=[])
    assert flips.compare(a, a) == (12, 0)
    ids = a.completion_ids.clone()
    ids[1, 2] += 1
    ids[1, 4] += 1
    assert flips.compare(a, dataclasses.replace(a, completion_ids=ids)) == (6 + 3, 1)  # what follows a flip is another
    shorter = a.completion_mask.clone()
    shorter[0, 4:] = 0
    assert flips.compare(a, dataclasses.replace(a, completion_mask=shorter)) == (5 + 6, 1)
