"""On a pretended GPU (`tests/pretended_gpu`): the numbers of the CPU, and budgets of kernels, waits and copies."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "pretended_gpu"
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="a pretended GPU needs a C++ compiler"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="a pretended GPU needs a PyTorch without CUDA"),
]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


KERNELS, WAITS = 30, 8  # of a layer in a decode step; of a micro-batch
FAST = ["lora_llama", "step_lora", "micro_batch_lora", "key_biases_30", "training_hrpo"]
ARCHS = [slow(f"lora_{arch}") for arch in ("qwen2", "qwen3", "gemma3", "mistral", "gpt2")]
MODES = [slow(f"mode_{mode}") for mode in ("discrete", "interpolation", "soft_thinking", "mixture_of_inputs")]
MODES += [slow("mode_noise")]
OTHERS = [slow("full_llama"), slow("mode_hidden"), slow("eager_llama"), slow("all_candidates"), slow("greedy")]
TRAININGS = [
    slow(f"training_{name}") for name in ("rloo", "dapo", "sft", "full", "bfloat16", "autocast", "recomputing")
]


def run(*names):
    command = [sys.executable, str(FOLDER / "cases.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@cache
def fast():
    """What the fast tests ask for, from one process: it takes seconds to begin."""
    return run(*FAST)


def found(name):
    return fast()[name] if name in FAST else run(name)[name]


@pytest.mark.parametrize("name", ["lora_llama", *ARCHS, *MODES, *OTHERS])
def test_the_numbers_of_the_cpu_in_float64(name):
    result = found(name)
    cpu, gpu = result["cpu"], result["gpu"]
    assert gpu["ids"] == cpu["ids"]
    assert gpu["loss"] == pytest.approx(cpu["loss"], abs=1e-9)
    assert gpu["norm"] == pytest.approx(cpu["norm"], rel=1e-6)
    assert gpu["gap"] < 1e-8
    assert result["masked_and_grouped"] == 0


@pytest.mark.slow
def test_swapped_latents_are_replayed_as_they_were():
    """They are those of the row before, which a device that keeps finished rows for a while does not share."""
    assert found("mode_swapped")["gpu"]["gap"] < 1e-8


@pytest.mark.parametrize("name", [slow("bfloat16_lora"), slow("bfloat16_full")])
def test_a_replay_in_bfloat16_is_as_close_as_on_the_cpu(name):
    result = found(name)
    assert 0 < result["gpu"]["mean_gap"] < 0.02
    assert result["masked_and_grouped"] == 0


@pytest.mark.parametrize("size", [30, slow(100)])
def test_scores_are_not_rounded_before_the_softmax(size):
    assert found(f"key_biases_{size}")["mean_gap"] < 0.05  # scores in bfloat16 make .07 and .08


@pytest.mark.parametrize("trained", ["lora", slow("full")])
def test_a_decode_step_stays_within_its_budget(trained):
    step = found(f"step_{trained}")
    assert step["waits"] == step["copies"] == 0
    assert 10 < step["layer"] <= KERNELS


@pytest.mark.parametrize("trained", ["lora", slow("full")])
def test_a_micro_batch_stays_within_its_budget(trained):
    counts = found(f"micro_batch_{trained}")
    assert 0 < sum(counts["waits"].values()) + sum(counts["copies"].values()) <= WAITS, counts


@pytest.mark.parametrize("name", ["training_hrpo", *TRAININGS])
def test_training_and_a_resume(name):
    result = found(name)
    assert result["device"] == "cuda"
    _, second, resumed = result["losses"]
    assert resumed == pytest.approx(second, rel=1e-6, abs=1e-12)
    assert result["skipped"] == [0, 0, 0]
    assert result["masked_and_grouped"] == 0
