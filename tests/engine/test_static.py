"""Steps of static shapes: the same numbers, few different steps, and a captured step repeats right.

Without a GPU, `record` stands for a captured graph: it notes the operations of a step, and repeats them blindly on the
very tensors they were noted on.
"""

import dataclasses
import gc
import warnings
import weakref

import pytest
import torch
from engines import (
    ARCHS,
    CUDA_ON_CPU,
    EAGER_CUDA_ON_CPU,
    SEVEN,
    STATIC,
    WINDOW,
    G,
    Operations,
    adapted,
    record,
    same_rollouts,
)
from models import PROMPTS, SAMPLER, random_model

from hrpo import generate
from hrpo.engine import packed_decoder, static_decoder
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.cuda import graphs
from hrpo.engine.decoders import make_decoder
from hrpo.engine.interface import DEFAULT
from hrpo.engine.static_decoder import StaticDecoder

PACKED = [arch for arch in ARCHS if arch not in WINDOW]
WAITS = ("item", "local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "lift_fresh")


@pytest.fixture
def captures(monkeypatch):
    """Every capture, by what it captures."""
    seen = []
    monkeypatch.setattr(graphs, "capture", lambda *arguments: seen.append(arguments) or record(*arguments))
    monkeypatch.setattr(graphs, "new_pool", lambda: None)
    return seen


def roll_out(model, prompts=PROMPTS, engine=STATIC, **arguments):
    arguments = {"group_size": G, "seed": 3, **SAMPLER, **arguments}
    return generate(model, prompts, options=engine, **arguments)


@pytest.mark.parametrize("arch", ARCHS)
def test_static_shapes_change_nothing(arch):
    model = adapted(arch)
    same_rollouts(roll_out(model, engine=DEFAULT), roll_out(model), 1e-8)


@pytest.mark.parametrize("max_rows", [1, 2 * G, 3 * G + 1])
def test_batch_after_batch(max_rows):
    model, finished = random_model("llama"), []
    rollout = roll_out(model, SEVEN, max_rows=max_rows, on_finished=finished.append)
    same_rollouts(roll_out(model, SEVEN, DEFAULT), rollout, 1e-8)
    assert sum(finished) == len(rollout)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_room_for_cuda_changes_nothing(arch):
    model = adapted(arch)
    same_rollouts(roll_out(model, SEVEN, DEFAULT), roll_out(model, SEVEN, EAGER_CUDA_ON_CPU), 1e-8)


@pytest.mark.parametrize("max_rows", [1, 2 * G, None])
@pytest.mark.parametrize("arch", PACKED)
def test_a_captured_step_repeats_right(arch, max_rows, captures):
    model = adapted(arch)
    rollout = roll_out(model, SEVEN, CUDA_ON_CPU, max_rows=max_rows)
    same_rollouts(roll_out(model, SEVEN, DEFAULT), rollout, 1e-8)
    assert captures


def test_what_was_captured_serves_the_next_rollouts_and_new_weights(captures):
    model = adapted("llama")
    seen = []
    for turn in range(3):
        prompts = [[7 + turn, *prompt] for prompt in SEVEN]
        rollout = roll_out(model, prompts, CUDA_ON_CPU, seed=turn, eos_token_id=[])
        same_rollouts(roll_out(model, prompts, DEFAULT, seed=turn, eos_token_id=[]), rollout, 1e-8)
        seen.append(len(captures))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    assert 0 < seen[0] == seen[1] == seen[2]


def test_rollouts_that_were_given_stay_as_they_are(captures):
    model = adapted("llama")
    first = roll_out(model, SEVEN, CUDA_ON_CPU)
    kept = {field.name: getattr(first, field.name) for field in dataclasses.fields(first)}
    kept = {name: value.clone() for name, value in kept.items() if isinstance(value, torch.Tensor)}
    roll_out(model, SEVEN, CUDA_ON_CPU, seed=9)
    for name, value in kept.items():
        assert torch.equal(getattr(first, name), value), name


def test_another_sampler_is_captured_anew(captures):
    model = adapted("llama")
    for options in ({}, {"greedy": True}, {"temperature": 0.9}, {"top_k": 0}, {"max_new_tokens": 5}):
        before = len(captures)
        rollout = roll_out(model, SEVEN, CUDA_ON_CPU, **options)
        assert len(captures) > before
        same_rollouts(roll_out(model, SEVEN, DEFAULT, **options), rollout, 1e-8)


def test_what_is_kept_does_not_keep_the_model(captures):
    model = adapted("llama")
    roll_out(model, SEVEN, CUDA_ON_CPU)
    gone = weakref.ref(model)
    del model
    captures.clear()
    gc.collect()
    assert gone() is None


def test_finished_rows_leave_by_halves(captures, monkeypatch):
    """As many rows as at first, or a power of two, and as many positions as 2, 4, 8 ..."""
    monkeypatch.setattr(static_decoder, "FEWEST_POSITIONS", 2)
    seen = []
    ready = StaticDecoder.ready
    monkeypatch.setattr(StaticDecoder, "ready", lambda self: seen.append(ready(self)) or seen[-1])
    model = adapted("llama")
    rollout = roll_out(model, SEVEN, CUDA_ON_CPU, group_size=3, max_new_tokens=24)
    same_rollouts(roll_out(model, SEVEN, DEFAULT, group_size=3, max_new_tokens=24), rollout, 1e-8)
    rows, slots, _, positions, _ = zip(*seen, strict=True)
    assert rows[0] == 21
    assert len(set(rows)) > 2
    assert set(rows) <= {21, 16, 8, 4, 2, 1}
    assert list(rows) == sorted(rows, reverse=True)
    assert all(b == min(7, n) for n, b in zip(rows, slots, strict=True))
    assert set(positions) <= {2, 4, 8, 16, 24}
    assert list(positions) == sorted(positions)


@pytest.mark.parametrize("arch", PACKED)
def test_steps_wait_for_nothing(arch, monkeypatch):
    steps = []

    def noted(self, inputs, step=StaticDecoder.step):
        with Operations() as operations:
            logits = step(self, inputs)
        steps.append(operations.described())
        return logits

    monkeypatch.setattr(StaticDecoder, "step", noted)
    roll_out(adapted(arch), SEVEN, max_rows=2 * G)  # batches of 2, 2, 2 and 1 prompts
    assert len(steps) > 4
    for name, arguments in steps[0]:
        assert not any(part in name for part in WAITS), name
        assert not (name.startswith("aten.index") and "torch.bool" in arguments), name


def test_the_switch():
    model = random_model("llama")
    options = {"prompts": 1, "longest_prompt": 8, "max_new_tokens": 4}
    assert type(make_decoder(CpuAccelerator().decoding(model, STATIC), **options)) is StaticDecoder
    assert type(make_decoder(CpuAccelerator().decoding(model, DEFAULT), **options)) is packed_decoder.PackedDecoder
    assert (
        type(make_decoder(CpuAccelerator().decoding(random_model("mistral"), STATIC), **options))
        is packed_decoder.PlainDecoder
    )


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("arch", PACKED)
def test_a_cuda_graph(arch, dtype, monkeypatch):
    model, captured = adapted(arch, dtype).cuda(), []
    capture = graphs.capture
    monkeypatch.setattr(graphs, "capture", lambda *arguments: captured.append(arguments) or capture(*arguments))
    graph = roll_out(model, SEVEN, DEFAULT, max_rows=2 * G)
    assert captured
    eager = roll_out(model, SEVEN, dataclasses.replace(DEFAULT, static_shapes=False), max_rows=2 * G)
    same_rollouts(eager, graph, 1e-8 if dtype == torch.float64 else 1e-4)


@needs_gpu
@pytest.mark.parametrize("top_k", [25, 0])
@pytest.mark.parametrize("techniques", [DEFAULT, dataclasses.replace(DEFAULT, static_shapes=False)])
def test_no_step_waits_for_the_gpu(techniques, top_k):
    """However many steps there are, the host waits as often."""
    model = random_model("llama").cuda()

    def waits(tokens):
        options = {**SAMPLER, "max_new_tokens": tokens, "top_k": top_k, "eos_token_id": []}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            generate(model, PROMPTS, group_size=G, options=techniques, **options)
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    waits(8)  # what is made once
    assert 0 < waits(8) == waits(8)


@pytest.mark.parametrize("arch", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_step_is_traced_as_one_graph(arch, monkeypatch):
    """`torch.compile` with `fullgraph` raises where it has to break one."""
    traced = []

    def compiler(function, **options):
        assert options["fullgraph"]
        return compile_(function, backend=lambda module, inputs: traced.append(module) or module.forward, **options)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(graphs.CapturedSteps, "run", lambda self, step, state, key: step(state))
    model = adapted(arch)
    options = dataclasses.replace(CUDA_ON_CPU, torch_compile=True)
    same_rollouts(roll_out(model, SEVEN, DEFAULT), roll_out(model, SEVEN, options), 1e-8)
    assert 0 < len(traced) < 5  # one for each number of rows
    torch.compiler.reset()


def test_what_cannot_be_captured_runs_step_by_step(monkeypatch, caplog):
    def capture(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "new_pool", lambda: None)
    model = adapted("llama")
    for _ in range(2):
        same_rollouts(roll_out(model, SEVEN, DEFAULT), roll_out(model, SEVEN, CUDA_ON_CPU), 1e-8)
    told = "decode steps run one by one, as they cannot be captured: operation not permitted when stream is capturing"
    assert [record.message for record in caplog.records if "one by one" in record.message] == [told]
