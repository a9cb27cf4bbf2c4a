"""Law 1 on every architecture of the table in docs/architectures.md, and that the table says what is so."""

from pathlib import Path

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, COMMON, KV, MOE, REFUSED, check_law_1, config_of, refusal, row, tables
from models import PROMPTS, SAMPLER, plain_logprobs, random_lm, random_model
from peft import LoraConfig, get_peft_model
from transformers import BloomConfig, GraniteConfig, MixtralConfig

from hrpo import HybridCausalLM, HybridGate, Lora, generate, replay
from hrpo.common.errors import InputError
from hrpo.engine.packing_probe import packs_up_to
from hrpo.model import HybridSettings
from hrpo.models.float64 import stay_in_float64

DOC = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()


# Each differs from the others in its attention, its positions, its experts, its scales or its norms
SAMPLE = {
    *("llama", "gemma2", "gemma3", "gpt_oss", "granite", "bloom", "mpt", "opt", "gpt_neox", "mixtral", "deepseek_v3"),
    *("minicpm3", "modernbert-decoder", "llama4", "olmo2", "phi3"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in sorted(ARCHITECTURES)]
)
def test_law_1(name):
    """The table is of one version of transformers; with others some take the plain path, and the law holds as well."""
    line = f"{row(name)}\n"  # which checks the law
    if f"architectures of transformers {'.'.join(transformers.__version__.split('.')[:2])}," in DOC:
        assert line in DOC


def test_the_sample_is_of_architectures():
    assert ARCHITECTURES.keys() >= SAMPLE


def test_law_1_of_experts_in_float32():
    """In float64 they are multiplied one by one; otherwise in groups."""
    model = random_model(MixtralConfig(**COMMON, **KV, **MOE), torch.float32)
    assert model.lm.config._experts_implementation == "grouped_mm"
    check_law_1(model, PROMPTS, 1e-4)


@pytest.mark.parametrize("name", ["gemma2", "granite", "mixtral", "mpt", "phi3"])
@torch.no_grad()
def test_law_1_with_adapters(name):
    kind = ARCHITECTURES[name]
    bare = random_model(config_of(kind), kind.dtype)
    lm = get_peft_model(bare.lm, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for parameter_name, parameter in lm.named_parameters():
        if "lora_B" in parameter_name:
            parameter.normal_(std=0.3)
    model = HybridCausalLM(lm, bare.gate, bare.settings).to(kind.dtype)
    rollout = generate(model, PROMPTS, group_size=4, seed=3, **SAMPLER)
    logprobs, reference = replay(model, rollout)
    torch.testing.assert_close(logprobs, rollout.sample_logprobs, atol=kind.atol, rtol=0)
    initial = random_lm(config_of(kind), kind.dtype)
    if kind.dtype == torch.float64:
        stay_in_float64(initial)
    torch.testing.assert_close(reference, plain_logprobs(initial, rollout), atol=kind.atol, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    error = refusal(name)
    assert error.startswith("model.name: ")
    assert "\n" not in error


def test_with_adapters_too_the_architecture_is_what_is_refused(tmp_path):
    random_lm(config_of(REFUSED["mamba"]), torch.float32).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^model\.name: MambaForCausalLM cannot be used"):
        HybridCausalLM.from_pretrained(tmp_path, lora=Lora(r=4))


@pytest.mark.slow
def test_the_tables_say_what_is_so():
    assert tables() in DOC


def test_a_model_made_in_memory_is_tried_at_its_first_use():
    config = config_of(REFUSED["mamba"])
    model = HybridCausalLM(random_lm(config), HybridGate(24), HybridSettings("memory"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"^model\.name: MambaForCausalLM cannot be used: it keeps no keys"):
            generate(model, PROMPTS, **SAMPLER)


def test_it_is_tried_once(monkeypatch):
    model = random_model("llama")
    generate(model, PROMPTS, **SAMPLER)
    monkeypatch.setattr("hrpo.models.compat._try", lambda model: "tried again")
    generate(model, PROMPTS, **SAMPLER)


def test_nan_is_named():
    with pytest.raises(InputError, match=r"BloomForCausalLM .* NaN where prompts are padded on the left, in float64"):
        generate(random_model(BloomConfig(**COMMON)), PROMPTS, **SAMPLER)


def test_a_scale_that_hardly_shows_takes_the_plain_path(caplog):
    model = random_model(GraniteConfig(**COMMON, **KV, logits_scaling=1.0001), torch.float32)
    assert packs_up_to(model) == 0
    assert "scaled or capped" in caplog.text
