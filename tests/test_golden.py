"""Reference numbers: the release's own gate and loss, and an independent run of the whole loop."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hrpo import HybridCausalLM, HybridGate, generate, group_advantages, hrpo_loss, replay

GOLDEN = Path(__file__).parent / "golden" / "llama"
SETTINGS = json.loads((GOLDEN / "golden.json").read_text())
SAMPLER = {
    "temperature": SETTINGS["temperature"],
    "top_k": SETTINGS["top_k"],
    "delimiter": [SETTINGS["delimiter_token_id"]],
    "eos_token_id": SETTINGS["eos_token_id"],
}


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=atol, rtol=0)


@pytest.fixture(scope="module")
def cases():
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture
def model():
    model = HybridCausalLM.from_pretrained(GOLDEN / "model", r_min=SETTINGS["r_min"])
    model.gate.load_state_dict(load_file(GOLDEN / "gate.safetensors"))
    return model


@pytest.fixture(scope="module")
def prompts(cases):
    return [row[mask.bool()].tolist() for row, mask in zip(cases["prompt_ids"], cases["prompt_mask"], strict=True)]


def test_lambda_of(cases):
    close(HybridGate.lambda_of(cases["init_u"]), cases["init_Lambda"], 1e-4)


def test_gate(model, cases):
    out, a = model.gate(cases["gate_embeds"], cases["gate_latents"])
    close(out, cases["gate_output"])
    close(a, cases["gate_a"])


def test_greedy(model, prompts, cases):
    rollout = generate(model, prompts, max_new_tokens=SETTINGS["max_new_tokens"], greedy=True, **SAMPLER)
    assert rollout.completion_ids.tolist() == cases["greedy_ids"].tolist()
    fed = rollout.completion_mask.bool() & (rollout.completion_ids != SETTINGS["eos_token_id"])
    fed[:, -1] = False
    assert torch.equal(rollout.hybrid_mask[fed], cases["greedy_hybrid"].bool()[fed])
    close(rollout.latents(model.embedding_table())[fed], cases["greedy_latents"][fed])
    logprobs = cases["greedy_logits"].log_softmax(2).gather(2, cases["greedy_ids"].unsqueeze(2)).squeeze(2)
    close(rollout.sample_logprobs, logprobs)


def test_teacher_forced(model, prompts, cases):
    group_size, eos = SETTINGS["group_size"], SETTINGS["eos_token_id"]
    rollout = generate(model, prompts, group_size=group_size, forced_ids=cases["forced_ids"], **SAMPLER)
    mask = cases["forced_mask"].bool()
    assert torch.equal(rollout.completion_mask.bool(), mask)
    fed = mask & (cases["forced_ids"] != eos)
    fed[:, -1] = False
    hybrid = cases["forced_hybrid"].bool() & fed
    assert torch.equal(rollout.hybrid_mask, hybrid)
    close(rollout.latents(model.embedding_table())[hybrid], cases["forced_latents"][hybrid])
    close(rollout.gate_mean[hybrid], cases["forced_gate_mean"][hybrid])

    logprobs, reference = replay(model, rollout)
    close(logprobs[mask], cases["logps"][mask])
    close(rollout.sample_logprobs[mask], cases["logps"][mask])
    close(reference[mask], cases["ref_logps"][mask])
    assert not logprobs[~mask].any()

    advantages = group_advantages(cases["rewards"], group_size)
    close(advantages, cases["advantages"])
    loss, stats = hrpo_loss(logprobs, reference, advantages, rollout.completion_mask, beta=SETTINGS["beta"])
    close(loss, cases["loss"].squeeze())
    close(stats["kl"], cases["kl"].squeeze())
    close(rollout.lengths.float().mean(), cases["mean_length"].squeeze())

    loss.backward()
    gradients = {name: p.grad for name, p in model.lm.named_parameters()}
    gradients |= {f"gate.{name}": p.grad for name, p in model.gate.named_parameters()}
    assert set(SETTINGS["gradient_norms"]) <= set(gradients)
    for name, expected in SETTINGS["gradient_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(expected, abs=2e-4), name
