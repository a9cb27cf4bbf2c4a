"""The laws: replay equals rollout, a closed gate is GRPO, batching changes nothing, gold answers score 1."""

import dataclasses

import pytest
import torch
from benchmark_rows import write
from models import CONFIGS, DELIMITER, EOS, PROMPTS, SAMPLER, VOCAB, plain_logprobs, random_lm, random_model
from peft import LoraConfig, get_peft_model

from hrpo import HybridCausalLM, generate, hrpo_loss, replay
from hrpo.config.schema import TaskConfig
from hrpo.data import Rollout
from hrpo.engine.interface import DEFAULT
from hrpo.loss import token_weights
from hrpo.tasks import TASKS, load_task

ARCHS = list(CONFIGS)
G = 4


def same(actual, expected, atol=1e-8):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def check_interesting(rollout: Rollout):
    """A rollout that shows nothing proves nothing."""
    assert len(set(rollout.lengths.tolist())) > 2
    ended = torch.isin(rollout.completion_ids, torch.tensor(EOS)) & rollout.completion_mask.bool()
    stopped = ((rollout.completion_ids == DELIMITER).cumsum(1) > 0) & rollout.completion_mask.bool()
    assert ended.any()
    assert stopped.any()
    assert rollout.hybrid_mask.any()
    assert not (rollout.hybrid_mask & (stopped | ended)).any()
    assert not rollout.hybrid_mask[:, -1].any()


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_replay_equals_rollout(arch):
    model = random_model(arch)
    for top_k in (SAMPLER["top_k"], 0):
        rollout = generate(model, PROMPTS, group_size=G, seed=3, **{**SAMPLER, "top_k": top_k})
        check_interesting(rollout)
        logprobs, reference = replay(model, rollout)
        same(logprobs, rollout.sample_logprobs)
        same(reference, plain_logprobs(model.lm, rollout))
        assert not torch.allclose(logprobs, reference, atol=1e-3), "the latents change nothing"
        for first, last in [(0, 4), (4, 12), (1, 3), (5, 6), (3, 9)]:  # whole groups, parts, across groups
            part = rollout.select(first, last)
            t = part.completion_ids.shape[1]
            for whole, piece in zip((logprobs, reference), replay(model, part), strict=True):
                same(piece, whole[first:last, :t])


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_replay_in_float32(arch):
    model = random_model(arch, torch.float32)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    logprobs, reference = replay(model, rollout)
    same(logprobs, rollout.sample_logprobs, 1e-4)
    same(reference, plain_logprobs(model.lm, rollout), 1e-4)


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_replay_with_adapters(arch):
    model = random_model(arch)
    initial = random_lm(arch)
    same(initial.get_input_embeddings().weight, model.embedding.weight, 0)
    lm = get_peft_model(model.lm, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)
    model = HybridCausalLM(lm, model.gate, model.settings).double()
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    logprobs, reference = replay(model, rollout)
    same(logprobs, rollout.sample_logprobs)
    same(reference, plain_logprobs(initial, rollout))


def test_reference_is_kept_in_full_fine_tuning():
    model = random_model("llama")
    model.keep_reference()
    assert not any("reference" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.mul_(1.1)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    with torch.no_grad():
        _, reference = replay(model, rollout)
        same(reference, plain_logprobs(random_lm("llama"), rollout))


@torch.no_grad()
def test_policies():
    model = random_model("llama")
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    mask = rollout.completion_mask.bool()
    sampler, _ = replay(model, rollout, policy="sampler")
    chosen = rollout.support_ids == rollout.completion_ids.unsqueeze(2)
    same(sampler[mask], (rollout.support_probs * chosen).sum(2)[mask].log())
    tempered, _ = replay(model, rollout, policy="tempered")
    assert (tempered[mask] < sampler[mask]).all()  # candidates left out make the others likelier
    for top_k in (VOCAB, 0):
        for mode in ("hybrid", "discrete"):
            whole = generate(model, PROMPTS, group_size=G, seed=3, latent_mode=mode, **{**SAMPLER, "top_k": top_k})
            same(replay(model, whole, policy="tempered")[0], replay(model, whole, policy="sampler")[0])


@pytest.mark.parametrize("arch", ARCHS)
def test_closed_gate_decodes_like_transformers(arch):
    lm = random_lm(arch)
    discrete = random_model(arch, latent_mode="discrete")
    closed = random_model(arch)
    with torch.no_grad():
        closed.gate.Lambda.fill_(torch.inf)  # a = 1
        closed.gate.input_gate.bias.fill_(-torch.inf)  # i = 0
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        expected = lm.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False, eos_token_id=EOS
        )[0, len(prompt) :].tolist()
        for model in (discrete, closed):
            rollout = generate(model, [prompt], greedy=True, **SAMPLER)
            assert rollout.completion_ids[0].tolist() == expected
            assert rollout.hybrid_mask.any() == (model is closed and expected[0] != DELIMITER)


@pytest.mark.parametrize("arch", ARCHS)
def test_batching_changes_nothing(arch):
    model = random_model(arch)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    keys = [1000 + n for n in range(len(rollout))]
    together = generate(model, PROMPTS, group_size=G, sample_keys=keys, **SAMPLER)
    everything = generate(
        model, PROMPTS, group_size=G, sample_keys=keys, options=dataclasses.replace(DEFAULT, compact=False), **SAMPLER
    )
    for field in dataclasses.fields(Rollout):
        value = getattr(together, field.name)
        if isinstance(value, torch.Tensor) and not field.name.startswith(("prompt", "support")):
            same(getattr(everything, field.name), value)
    for b, prompt in enumerate(PROMPTS):
        for g in range(G):
            n = b * G + g
            alone = generate(model, [prompt], sample_keys=[keys[n]], **SAMPLER)
            length = alone.completion_ids.shape[1]
            assert together.lengths[n] == length
            assert together.completion_ids[n, :length].tolist() == alone.completion_ids[0].tolist()
            same(together.sample_logprobs[n, :length], alone.sample_logprobs[0])
            assert torch.equal(together.hybrid_mask[n, :length], alone.hybrid_mask[0])


@pytest.mark.sampled
@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize(
    ("arch", "atol"),
    [("gpt2", 1e-10), ("gpt_neox", 1e-10), ("llama", 1e-6), ("gemma3", 1e-6)],  # RMSNorm rounds to float32 inside
)
def test_micro_batches_add_up(arch, atol, reduction):
    model = random_model(arch)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    advantages = torch.linspace(-1, 1, len(rollout), dtype=torch.float64)
    weights = token_weights(rollout.completion_mask, reduction)

    def gradients(budget):
        model.zero_grad()
        batches = list(rollout.micro_batches(budget))
        assert [n for first, last in batches for n in range(first, last)] == list(range(len(rollout)))
        total = 0.0
        for first, last in batches:
            part = rollout.select(first, last)
            logprobs, reference = replay(model, part)
            loss, _ = hrpo_loss(
                logprobs,
                reference,
                advantages[first:last],
                part.completion_mask,
                beta=0.1,
                weights=weights[first:last, : logprobs.shape[1]],
            )
            loss.backward()
            total += loss.item()
        return len(batches), total, {name: p.grad.clone() for name, p in model.named_parameters()}

    whole, loss, expected = gradients(10_000)
    assert whole == 1
    for budget, least in ((8 + 4 * 14, 2), (25, 6), (0, 12)):
        batches, part_loss, actual = gradients(budget)
        assert batches >= least
        assert part_loss == pytest.approx(loss, abs=atol)
        for name in expected:
            same(actual[name], expected[name], atol)


@pytest.mark.parametrize("name", TASKS)
def test_gold_answers_score_1(name, tmp_path):
    """On rows of our own where problems are published; scripts/gold.py does the same on whole benchmarks."""
    generated = name == "arithmetic"
    task = load_task(TaskConfig(name, path="" if generated else str(write(tmp_path))), seed=5)
    examples = [*task.train[:200], *task.test[:200]]
    assert examples
    for example in examples:
        golds = [example.gold] if isinstance(example.gold, str) else example.gold
        for gold in golds:
            assert task.judge(f"So it is.\n#### {gold}", example) == (True, True)
            assert task.judge(f"#### {gold}\n#### {gold}", example) == (False, True)
        wrong = {"number": "#### -98765", "math": "#### x^9", "choice": "#### J", "qa": "#### Nobody else"}[task.kind]
        for text in (wrong, "", "####"):
            assert not task.judge(text, example).lenient
        if example.solution:
            assert task.judge(example.solution, example).strict
