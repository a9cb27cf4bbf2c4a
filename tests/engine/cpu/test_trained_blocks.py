"""Blocks with compiled operations, trained, are the model's own: their gradients, for less memory."""

import copy
import dataclasses
import logging
import shutil
from typing import Any

import pytest
import torch
from models import CONFIGS, PROMPTS, SAMPLER, SHAPE, random_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig

from hrpo import HybridCausalLM, generate, replay
from hrpo.engine.checkpointing import kept_bytes
from hrpo.engine.cpu import trained_blocks
from hrpo.engine.cpu.accelerator import CpuAccelerator, known
from hrpo.engine.cpu.build import compiled
from hrpo.engine.cpu.linear import product_dtype
from hrpo.engine.interface import DEFAULT, REFERENCE
from hrpo.engine.packing_probe import packs_up_to

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
LIKE_LLAMA = ["llama", "mistral", "qwen2"]
APART = dataclasses.replace(DEFAULT, accelerator=CpuAccelerator(compiled=False))
HALF = product_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16
OPTIONS = SAMPLER | {"max_new_tokens": 8, "delimiter": [40]}  # within the window of "mistral"


def adapted(arch, dtype=torch.float32, targets: Any = "all-linear", *, fresh=False, **options) -> HybridCausalLM:
    """A model with adapters that do something, unless they are fresh."""
    model = random_model(arch, dtype)
    if arch in ("mistral", "gemma3"):
        model.lm.config.sliding_window = 64
        for layer in model.lm.model.layers:
            layer.self_attn.sliding_window = 64
    lm = get_peft_model(model.lm, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name and not fresh:
                parameter.normal_(std=0.3)
    return HybridCausalLM(lm, model.gate, model.settings)


def learnt(model, rollout, **options):
    """Log-probabilities of policy and reference, and gradients."""
    model.zero_grad()
    logprobs, reference = replay(model, rollout, **options)
    (logprobs * torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logprobs.detach(), reference, gradients


def replacements(model) -> list[bool]:
    """Of blocks that were tried, whether they were alike."""
    return list(known.of(model).training.values())


@pytest.mark.sampled
@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("targets", ["all-linear", ["v_proj", "down_proj"]], ids=["all", "some"])
@pytest.mark.parametrize("arch", LIKE_LLAMA)
def test_gradients(arch, targets, recompute):
    model = adapted(arch, targets=targets)
    rollout = generate(model, PROMPTS, group_size=3, seed=3, **OPTIONS)
    *logprobs, gradients = learnt(model, rollout, recompute=recompute)
    assert replacements(model) == [True] * 3
    assert not any("forward" in vars(module) for module in model.modules())
    *expected, others = learnt(model, rollout, options=REFERENCE)
    for one, other in zip(logprobs, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert gradients.keys() == others.keys()
    assert any("lora_A" in name for name in gradients)
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 1e-5 * others[name].norm(), name


@pytest.mark.skipif(not HALF, reason="this CPU has no instructions for bfloat16")
@pytest.mark.parametrize("arch", LIKE_LLAMA)
def test_gradients_in_bfloat16(arch):
    """As near to those in float32 as the ones of the model's own blocks."""
    model = adapted(arch, torch.bfloat16)
    rollout = generate(model, PROMPTS, group_size=3, seed=3, **OPTIONS)
    found = {apart: learnt(model, rollout, options=APART if apart else DEFAULT) for apart in (False, True)}
    assert replacements(model) == [True] * 3
    model.lm.float()
    expected = learnt(model, rollout, options=APART)

    def distance(apart):
        pairs = [(found[apart][2][name], gradient) for name, gradient in expected[2].items()]
        return torch.cat([(one - other).flatten() for one, other in pairs]).norm()

    assert distance(False) <= 1.2 * distance(True)
    assert (found[False][0] - expected[0]).norm() <= 1.2 * (found[True][0] - expected[0]).norm()


def test_they_keep_less():
    model = adapted(LlamaConfig(**SHAPE | {"intermediate_size": 64}))
    prompts = [list(range(6, 36)), list(range(8, 33))]
    rollout = generate(model, prompts, group_size=8, **OPTIONS | {"max_new_tokens": 24, "eos_token_id": 0})

    def kept(techniques):
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(id(x), x), lambda x: x):
            logprobs, _ = replay(model, rollout, with_reference=False, options=techniques)
        logprobs.sum().backward()
        weights = {p.data_ptr() for p in model.parameters()}
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in seen.values()}
        return sum(size for place, size in storages.items() if place not in weights)

    fast, names, apart = kept(DEFAULT), known.of(model).trained, kept(APART)
    assert fast < 0.8 * apart
    tokens = int(rollout.prompt_mask.sum() + rollout.completion_mask.sum())
    assert len(names) == 3
    assert 1 < fast / kept_bytes(model.bare_lm, tokens, torch.float32, names) < 2.2
    assert 1 < apart / kept_bytes(model.bare_lm, tokens, torch.float32) < 1.8


@pytest.mark.parametrize("arch", sorted(CONFIGS.keys() - {*LIKE_LLAMA}))
def test_other_blocks_stay_as_they_are(arch):
    model = adapted(arch)
    rollout = generate(model, PROMPTS, group_size=2, **OPTIONS)
    expected, *_ = learnt(model, rollout, options=REFERENCE)
    assert packs_up_to(model) > 16
    logprobs, *_ = learnt(model, rollout)
    assert not known.of(model).trained
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)


def another_activation(model):
    model.bare_lm.model.layers[1].mlp.act_fn = nn.GELU()


def a_hook_inside(model):
    model.bare_lm.model.layers[1].mlp.register_forward_hook(lambda module, inputs, out: None)


def a_backward_hook_inside(model):
    model.bare_lm.model.layers[1].mlp.register_full_backward_hook(lambda module, into, out: None)


def a_forward_of_theirs(model):
    block = model.bare_lm.model.layers[1]
    block.forward = block.forward


def a_forward_of_theirs_inside(model):
    attention = model.bare_lm.model.layers[1].self_attn
    attention.forward = attention.forward


def an_adapter_of_directions(_):
    """DoRA (arXiv:2402.09353), which at the start adds nothing, as any other."""
    return adapted("llama", targets=["layers.1.mlp.up_proj"], use_dora=True, fresh=True)


def an_adapter_with_a_bias(_):
    return adapted("llama", targets=["layers.1.mlp.up_proj"], lora_bias=True, fresh=True)


def a_trained_norm(model):
    model.bare_lm.model.layers[1].input_layernorm.weight.requires_grad_()


def two_adapters(model):
    model.lm.add_adapter("second", LoraConfig(r=2, target_modules=["layers.1.mlp.up_proj"]))
    model.lm.base_model.set_adapter(["default", "second"])


CHANGES = [another_activation, a_hook_inside, a_backward_hook_inside, a_forward_of_theirs, a_forward_of_theirs_inside]
CHANGES += [a_trained_norm, two_adapters, an_adapter_of_directions, an_adapter_with_a_bias]


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_that_differs_stays_as_it_is(change):
    model = adapted("llama")
    model = change(model) or model
    rollout = generate(model, PROMPTS, group_size=2, **OPTIONS)
    before = [set(vars(module)) for module in model.modules()]
    *logprobs, gradients = learnt(model, rollout)
    assert known.of(model).trained == ["model.layers.0", "model.layers.2"]
    assert [set(vars(module)) for module in model.modules()] == before
    *expected, others = learnt(model, rollout, options=REFERENCE)
    assert gradients.keys() == others.keys()
    for one, other in zip(logprobs, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-4, rtol=1e-4)


def test_what_is_trained_whole_keeps_its_own_way_and_its_reference_does_not():
    model = random_model("llama", torch.float32)
    model.keep_reference()
    rollout = generate(model, PROMPTS, group_size=2, **OPTIONS)
    seen = []
    compute = trained_blocks.TrainedBlock.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trained_blocks.TrainedBlock,
            "__call__",
            lambda self, *args, **options: seen.append(torch.is_grad_enabled()) or compute(self, *args, **options),
        )
        _, reference, gradients = learnt(model, rollout)
    assert not known.of(model).trained
    assert not any(seen)
    assert len(seen) == 6  # three of which to try them
    _, expected, others = learnt(model, rollout, options=REFERENCE)
    torch.testing.assert_close(reference, expected, atol=2e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-4, rtol=1e-4)


def test_each_block_is_tried_once(monkeypatch):
    model = adapted("llama")
    another_activation(model)
    tried = []
    alike = trained_blocks.alike
    monkeypatch.setattr(trained_blocks, "alike", lambda *args: tried.append(args) or alike(*args))
    rollout = generate(model, PROMPTS, group_size=2, **OPTIONS)
    for _ in range(2):
        replay(model, rollout)
    assert len(tried) == 3


def test_without_a_compiler(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("HRPO_CACHE", str(tmp_path))
    monkeypatch.setattr("hrpo.engine.cpu.kernels.compiled", lambda: compiled.__wrapped__())
    model = adapted("llama")
    with caplog.at_level(logging.WARNING, "hrpo"):
        rollout = generate(model, PROMPTS, group_size=2, **OPTIONS)
        *_, gradients = learnt(model, rollout)
    assert not known.of(model).trained
    assert not known.of(model).training
    assert gradients
    assert "no-such-compiler" in caplog.records[0].getMessage()


def test_a_copy_of_a_model_has_its_own_way_back():
    """Nothing of the training is left in a model that is copied afterwards."""
    model = adapted("llama")
    rollout = generate(model, PROMPTS, group_size=2, **OPTIONS)
    expected, *_ = learnt(model, rollout)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    logprobs, *_ = learnt(model, rollout)
    assert torch.equal(logprobs, expected)
    logprobs, *_ = learnt(other, rollout)
    assert not torch.allclose(logprobs, expected)
