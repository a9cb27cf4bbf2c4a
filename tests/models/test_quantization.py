"""Frozen weights in 4 and 8 bits: the laws, a training step, what a checkpoint remembers, and what is refused."""

import dataclasses
import sys

import pytest
import torch
from models import inference_copy
from torch import nn

from hrpo import HybridCausalLM, Lora, generate, replay
from hrpo.common.errors import InputError
from hrpo.config.schema import EvalConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.engine.interface import DEFAULT, REFERENCE
from hrpo.engine.packing_probe import packs_up_to
from hrpo.storage.run_dir import newest_checkpoint
from hrpo.training.run import Run

LORA = Lora(r=4, alpha=8)
PROMPTS = [[5, 13, 6, 16, 18], [5, 6, 18], [18]]
# Largest and mean difference of log-probs. LLM.int8() computes in float16 and rounds inputs to 8 bits: a last bit of
# another summation order can move one of them a step.
ROUNDING = {("4bit", "float32"): (1e-4, 1e-5), ("4bit", "bfloat16"): (0.2, 0.02)}
ROUNDING |= {("8bit", "float32"): (0.2, 0.02), ("8bit", "bfloat16"): (0.2, 0.02)}


def quantized(kind: str, dtype: str = "float32") -> HybridCausalLM:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = HybridCausalLM.from_pretrained("tiny", lora=LORA, dtype=dtype, quantization=kind, r_min=0.6, r_max=0.9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def dequantized(model: HybridCausalLM) -> HybridCausalLM:
    """The same model with ordinary weights, as the bits have them."""
    from bitsandbytes.functional import dequantize_4bit

    plain = quantized("none")
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if "base_layer" not in name}, strict=False)
    for name, layer in plain.lm.named_modules():
        if hasattr(layer, "base_layer"):
            weight = model.lm.get_submodule(name).base_layer.weight
            layer.base_layer.weight.data = dequantize_4bit(weight, weight.quant_state)
    return plain


def roll_out(model: HybridCausalLM, **options):
    return generate(model, PROMPTS, group_size=4, max_new_tokens=12, temperature=2.0, seed=1, **options)


def gradients(model: HybridCausalLM, rollout, options=DEFAULT) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logprobs, _ = replay(model, rollout, with_reference=False, options=options)
    logprobs.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_quantized(kind, dtype):
    model = quantized(kind, dtype)
    layers = [layer.base_layer for layer in model.lm.modules() if hasattr(layer, "base_layer")]
    assert len(layers) == 5 * 7
    assert {layer.weight.dtype for layer in layers} == {{"4bit": torch.uint8, "8bit": torch.int8}[kind]}
    if kind == "4bit":
        states = [layer.weight.quant_state for layer in layers]
        assert {(state.quant_type, state.nested) for state in states} == {("nf4", True)}
        assert {layer.compute_dtype for layer in layers} == {getattr(torch, dtype)}
    assert model.embedding.weight.dtype == getattr(torch, dtype)
    assert type(model.bare_lm.lm_head) is nn.Linear
    assert model.bare_lm.lm_head.weight.dtype == getattr(torch, dtype)
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("gate.") for name in trained)
    assert set(trained.values()) == {torch.float32}


@pytest.mark.parametrize(("kind", "dtype"), ROUNDING)
@torch.no_grad()
def test_replay_equals_rollout(kind, dtype):
    model = quantized(kind, dtype)
    assert packs_up_to(model) > 10**6
    most, mean = ROUNDING[kind, dtype]

    def alike(one, other):
        difference = (one - other)[mask].abs()
        assert difference.max() <= most
        assert difference.mean() <= mean

    for techniques in (DEFAULT, REFERENCE):
        rollout = roll_out(model, options=techniques)
        mask = rollout.completion_mask.bool()
        logprobs, reference = replay(model, rollout, options=techniques)
        alike(logprobs, rollout.sample_logprobs)
        assert (logprobs - reference)[mask].abs().max() > 0.5
        with model.lm.disable_adapter():  # the reference is the quantized model on plain tokens
            for n in range(len(rollout)):
                prompt = rollout.prompt_ids[n // 4][rollout.prompt_mask[n // 4].bool()]
                row = torch.cat([prompt, rollout.completion_ids[n][mask[n]]])
                logits = model.lm(input_ids=row.unsqueeze(0)).logits[0, len(prompt) - 1 : -1].float()
                plain = logits.log_softmax(1).gather(1, row[len(prompt) :].unsqueeze(1)).squeeze(1)
                assert (reference[n][mask[n]] - plain).abs().max() <= most


def test_4_bits_compute_what_their_weights_say():
    """After a rollout too: then bitsandbytes must not have packed the weights in a way that passes no gradient on."""
    model = quantized("4bit")
    plain = dequantized(model)
    rollout = roll_out(model)
    expected = roll_out(plain, forced_ids=rollout.completion_ids)
    torch.testing.assert_close(rollout.sample_logprobs, expected.sample_logprobs, atol=1e-4, rtol=0)
    for techniques in (DEFAULT, REFERENCE):
        actual, wanted = gradients(model, rollout, techniques), gradients(plain, rollout, techniques)
        assert actual.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert (actual[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_gradients_of_8_bits():
    model = quantized("8bit")
    rollout = roll_out(model)
    fast, plain = gradients(model, rollout), gradients(model, rollout, REFERENCE)
    layers = [name for name in fast if ".layers.0." in name and "lora_" in name]
    assert len(layers) == 2 * 7
    for name in layers:
        assert (fast[name] - plain[name]).norm() <= 0.2 * plain[name].norm(), name


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_decoding_copy_shares_quantized_layers(kind):
    model = quantized(kind)
    packs_up_to(model)
    layer, copied = (lm.model.layers[0].self_attn.q_proj for lm in (model.bare_lm, inference_copy(model)))
    assert copied.base_layer is layer.base_layer
    assert copied.lora_A["default"].weight is layer.lora_A["default"].weight
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    roll_out(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_checkpoint_remembers_its_bits(kind, tmp_path):
    model = quantized(kind)
    model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("model*.safetensors"))
    loaded = HybridCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.settings == dataclasses.replace(model.settings, quantization=kind)
    expected = roll_out(model)
    assert torch.equal(roll_out(loaded).sample_logprobs, expected.sample_logprobs)
    other = HybridCausalLM.from_pretrained(tmp_path / "saved", quantization="none")
    assert other.settings.quantization == "none"
    assert not torch.equal(roll_out(other).sample_logprobs, expected.sample_logprobs)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_training_and_resuming(kind, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = TrainConfig(
        name=kind,
        output_dir=str(tmp_path),
        max_steps=2,
        model=ModelConfig(lora_rank=4, quantization=kind),
        rollout=RolloutConfig(prompts_per_step=2, group_size=4, max_new_tokens=24),
        eval=EvalConfig(problems=0),
    )
    begun = Run(config)
    before = {name: p.clone() for name, p in begun.model.named_parameters()}
    metrics = begun.train_step()
    assert metrics["grad_norm"] > 0
    assert metrics["sampling/sampling_logp_difference/max"] < ROUNDING[kind, "float32"][0]
    moved = {name for name, p in begun.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in begun.model.named_parameters() if p.requires_grad}
    begun.save()
    resumed = Run(config, resume=True)
    assert resumed.step == 1
    assert resumed.model.settings.quantization == kind
    assert newest_checkpoint(begun.folder) is not None
    assert resumed.train_step()["step"] == 2


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_refusals(monkeypatch, tmp_path):
    def refused(message, **options):
        with pytest.raises(InputError, match=rf"^model\.quantization: {message}"):
            HybridCausalLM.from_pretrained("tiny", **options)

    refused("must be one of none, 4bit, 8bit, got 2bit", lora=LORA, quantization="2bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refused(r"4bit needs bitsandbytes; pip install 'hrpo\[quantization\]'$", lora=LORA, quantization="4bit")
    config = TrainConfig(output_dir=str(tmp_path / "runs"), model=ModelConfig(quantization="8bit"))
    with pytest.raises(InputError, match="needs bitsandbytes"):
        Run(config)
    assert not (tmp_path / "runs").exists()
    monkeypatch.undo()
    pytest.importorskip("bitsandbytes")
    refused("8bit .* set model.lora_rank above 0$", quantization="8bit")
    refused("4bit .* do not run in float64; .* bfloat16$", lora=LORA, quantization="4bit", dtype="float64")
