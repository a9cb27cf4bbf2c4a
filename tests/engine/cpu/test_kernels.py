"""Which compiled code is used: what was measured to be faster, once for each kind of machine and model."""

import dataclasses
import json
import logging
import shutil

import pytest
import torch
from conftest import measured_times
from models import PROMPTS, SAMPLER, random_model
from transformers import GPT2Config

from hrpo import generate, replay
from hrpo.engine.cpu import kernels
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.cpu.build import compiled
from hrpo.engine.cpu.kernels import KERNELS, Shape, kernels_for
from hrpo.engine.interface import DEFAULT, REFERENCE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
FASTER, SLOWER = (1.0, 2.0), (1.0, 1.05)
LLAMA = Shape(torch.float32, D=24, I=40, H=4, H_kv=2, d=6, V=41)


@pytest.fixture
def library(tmp_path):
    """The library, as if it lay in a folder of its own."""
    library = compiled().only(names(compiled()))
    library.path = tmp_path / "decoding-0.so"
    return library


@pytest.fixture
def measured(monkeypatch):
    """Decide what is measured, and count how often it is."""
    asked = []

    def use(times):
        def measure(library, shape, task):
            asked.append((shape, task))
            return times[task]

        monkeypatch.setattr(kernels, "measure", measure)
        monkeypatch.setattr(kernels, "_times", measured_times)
        kernels._chosen.cache_clear()
        return asked

    yield use
    kernels._chosen.cache_clear()


def names(library) -> set[str]:
    return {name for name, _ in library.functions} if library else set()


def test_what_is_faster_is_used(library, measured):
    measured({"decoding": {"attention": FASTER, "candidates": SLOWER}})
    assert names(kernels._chosen(library, LLAMA, "decoding", 1)) == {"attend"}


def test_nothing_is_faster(library, measured):
    measured({"decoding": {"attention": SLOWER}})
    assert kernels._chosen(library, LLAMA, "decoding", 1) is None


def test_a_step_in_one_call_needs_all_that_it_does(library, measured):
    parts = {"products": FASTER, "norms, rotary embeddings, SwiGLU": FASTER}
    library.functions |= {(name, torch.float32): print for name in ("multiply", "blocks")}
    measured({"decoding": parts})
    assert names(kernels._chosen(library, LLAMA, "decoding", 1)) == {"multiply", "rms_norm", "rotate", "swiglu"}
    measured({"decoding": {**parts, "attention": FASTER}})
    library.path = library.path.with_name("decoding-1.so")
    assert "blocks" in names(kernels._chosen(library, LLAMA, "decoding", 1))


def test_it_is_measured_and_said_once(library, measured, caplog):
    asked = measured({"decoding": {"attention": FASTER, "candidates": SLOWER}, "training": {"attention": FASTER}})
    with caplog.at_level(logging.WARNING, "hrpo"):
        for _ in range(2):
            kernels._chosen.cache_clear()  # as in another process
            chosen = kernels._chosen(library, LLAMA, "decoding", 1)
            assert names(chosen) == {"attend"}
    assert len(asked) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "attention 2.00, candidates 1.05 (not used)" in line
    kernels._chosen(library, LLAMA, "training", 1)
    kernels._chosen(library, LLAMA, "decoding", 2)
    kernels._chosen(library, dataclasses.replace(LLAMA, dtype=torch.bfloat16), "decoding", 1)
    assert len(asked) == 4
    assert len(json.loads(library.path.with_suffix(".json").read_text())) == 4


@pytest.mark.parametrize("content", ["", "[1", "{}", "[]", '"x"', "\x00"])
def test_times_that_are_damaged_are_measured_again(library, measured, content):
    library.path.with_suffix(".json").write_text(content)
    asked = measured({"decoding": {"attention": FASTER}})
    for _ in range(2):
        kernels._chosen.cache_clear()
        assert names(kernels._chosen(library, LLAMA, "decoding", 1)) == {"attend"}
    assert len(asked) == 1


@pytest.mark.parametrize(
    "times", [None, [], {"attention": 1.0}, {"attention": [1.0]}, {"attention": [0.0, 1.0]}, {"other": [1.0, 2.0]}]
)
def test_a_damaged_entry_is_measured_again_and_the_others_stay(library, measured, times):
    path = library.path.with_suffix(".json")
    measured({"decoding": {"attention": FASTER}})
    kernels._chosen(library, LLAMA, "decoding", 1)
    (whole,) = json.loads(path.read_text()).values()
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: times, f"{key} of another": whole}))
    asked = measured({"decoding": {"attention": FASTER}})
    for _ in range(2):
        kernels._chosen.cache_clear()
        assert names(kernels._chosen(library, LLAMA, "decoding", 1)) == {"attend"}
    assert len(asked) == 2  # once each time
    assert json.loads(path.read_text()) == {key: whole, f"{key} of another": whole}


def test_a_folder_that_cannot_be_written(library, measured, tmp_path):
    (tmp_path / "file").write_text("")
    library.path = tmp_path / "file" / "decoding-0.so"
    asked = measured({"decoding": {"attention": FASTER}})
    assert names(kernels._chosen(library, LLAMA, "decoding", 1)) == {"attend"}
    assert len(asked) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("task", KERNELS)
@pytest.mark.parametrize("shape", [LLAMA, Shape(torch.float32, D=20, I=8, H=3, H_kv=1, d=4, V=7)], ids=["llama", "odd"])
def test_measuring_changes_nothing_else(shape, task, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "SECONDS", 0)
    monkeypatch.setattr(kernels, "ROUNDS", 1)
    shape = dataclasses.replace(shape, dtype=dtype)
    state = torch.get_rng_state()
    with torch.inference_mode():
        times = kernels.measure(compiled(), shape, task)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(0 < seconds < float("inf") for pair in times.values() for seconds in pair)
    has = {name for name, kernel in KERNELS[task].items() if {*kernel.functions} <= names(compiled())}
    left_out = {"latents", "products"} if dtype == torch.float32 else {"products", "blocks", "latents"}
    assert has - left_out <= times.keys() <= has


def test_types_without_compiled_code():
    assert kernels_for(random_model("llama", torch.float64), "decoding") is None
    assert kernels_for(random_model("llama", torch.float32), "training") is not None
    assert CpuAccelerator(compiled=False).decoding(random_model("llama", torch.float32), DEFAULT).library is None


def test_shapes():
    assert Shape.of(random_model("llama", torch.float32)) == LLAMA
    gpt2 = Shape.of(random_model("gpt2", torch.float32))
    assert (gpt2.D, gpt2.I, gpt2.H, gpt2.H_kv, gpt2.d) == (24, 96, 4, 4, 6)
    config = GPT2Config(n_embd=24, n_layer=1, n_head=8)
    assert Shape.of(random_model(config, torch.float32)).d == 2  # rotary embeddings turn pairs


@pytest.mark.parametrize("faster", [[], ["attention"], ["norms, rotary embeddings, SwiGLU"], ["blocks"]], ids=str)
def test_any_part_of_it_gives_the_same(faster, measured, monkeypatch):
    """Whatever is chosen, tokens and log-probabilities are those of PyTorch's operations."""
    model = random_model("llama", torch.float32)
    plain = generate(model, PROMPTS, group_size=2, options=REFERENCE, **SAMPLER)
    times = {task: {name: FASTER for name in kinds if name in faster} for task, kinds in KERNELS.items()}
    measured({})
    monkeypatch.setattr(kernels, "_times", lambda library, shape, task, threads: times[task])
    fast = generate(model, PROMPTS, group_size=2, **SAMPLER)
    assert torch.equal(fast.completion_ids, plain.completion_ids)
    with torch.no_grad():
        replayed, _ = replay(model, fast)
    torch.testing.assert_close(replayed, plain.sample_logprobs, atol=1e-4, rtol=0)
