"""Steps of static shapes: the same numbers, the same operations at each step, and a captured step repeats right.

Without a GPU, `record` stands for a captured graph: it notes the operations of a step, and repeats them blindly on the
very tensors they were noted on.
"""

import warnings

import pytest
import torch
from engines import ARCHS, SEVEN, STATIC, WINDOW, G, Operations, adapted, record, same_rollouts
from models import PROMPTS, SAMPLER, random_model

from hrpo import generate
from hrpo.engine import packed_decoder
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.interface import DEFAULT
from hrpo.engine.packed_decoder import StaticDecoder, make_decoder

PACKED = [arch for arch in ARCHS if arch not in WINDOW]
WAITS = ("item", "local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "lift_fresh")


def roll_out(model, prompts=PROMPTS, engine=STATIC, **arguments):
    return generate(model, prompts, group_size=G, seed=3, options=engine, **SAMPLER, **arguments)


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


@pytest.mark.parametrize("arch", PACKED)
def test_all_steps_of_a_batch_are_alike_and_wait_for_nothing(arch, monkeypatch):
    steps = []

    def noted(self, inputs, compute=StaticDecoder.compute):
        with Operations() as operations:
            logits = compute(self, inputs)
        steps.append(operations.described())
        return logits

    monkeypatch.setattr(StaticDecoder, "compute", noted)
    roll_out(adapted(arch), SEVEN, max_rows=2 * G)  # batches of 2, 2, 2 and 1 prompts
    assert len(steps) > 4
    assert len(set(map(str, steps))) == 2
    assert {str(step) for step in steps[:3]} == {str(steps[0])}
    for name, arguments in steps[0]:
        assert not any(part in name for part in WAITS), name
        assert not (name.startswith("aten.index") and "torch.bool" in arguments), name


@pytest.mark.parametrize("max_rows", [1, 2 * G, None])
@pytest.mark.parametrize("arch", PACKED)
def test_a_captured_step_repeats_right(arch, max_rows, monkeypatch):
    model, captures = adapted(arch), []

    def counted(compute):
        captures.append(compute)
        return record(compute)

    monkeypatch.setattr(packed_decoder, "CAPTURED_ON", ("cpu",))
    monkeypatch.setattr(packed_decoder, "capture", counted)
    rollout = roll_out(model, SEVEN, max_rows=max_rows)
    same_rollouts(roll_out(model, SEVEN, DEFAULT), rollout, 1e-8)
    assert len(captures) == (2 if max_rows == 2 * G else 1)  # anew for the last batch of one prompt only


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
    capture = packed_decoder.capture
    monkeypatch.setattr(packed_decoder, "capture", lambda compute: captured.append(compute) or capture(compute))
    graph = roll_out(model, SEVEN, max_rows=2 * G)
    assert len(captured) == 2
    monkeypatch.setattr(packed_decoder, "CAPTURED_ON", ())
    eager = roll_out(model, SEVEN, max_rows=2 * G)
    assert len(captured) == 2
    same_rollouts(eager, graph, 1e-8 if dtype == torch.float64 else 1e-4)


@needs_gpu
@pytest.mark.parametrize("top_k", [25, 0])
@pytest.mark.parametrize("techniques", [DEFAULT, STATIC], ids=["shared", "static"])
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

    waits(4)  # what is made once
    assert 0 < waits(8) == waits(14)
