"""Supervised fine-tuning: what is learnt, with which loss, and that reinforcement learning goes on from it."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from hrpo import HybridCausalLM
from hrpo.checkpoints import newest_checkpoint
from hrpo.config import CheckConfig, EvalConfig, ModelConfig, OptimizerConfig, RolloutConfig, SftConfig, TrainConfig
from hrpo.errors import InputError
from hrpo.run import train
from hrpo.sft import target_text, write_down
from hrpo.tasks import Example
from hrpo.trainer import Trainer


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="warm",
        folder=str(tmp_path),
        updates=3,
        objective="sft",
        model=ModelConfig(lora_rank=0),
        sft=SftConfig(batch=6),
        rollout=RolloutConfig(prompts=3, group_size=4, max_new_tokens=48),
        optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=1.0),
        check=CheckConfig(prompts=2),
        eval=EvalConfig(problems=3),
    )


def test_targets():
    worked = Example("2+3", "5", "2+3=5\n#### 5")
    assert target_text(worked, "solution") == "2+3=5\n#### 5"
    assert target_text(worked, "answer") == "#### 5"
    assert target_text(Example("2+3", "5", "2+3=5"), "solution") == "2+3=5\n#### 5"
    assert target_text(Example("who", ["Ada", "Ada Lovelace"]), "answer") == "#### Ada"
    with pytest.raises(InputError, match=r"sft\.target.*answer"):
        target_text(Example("who", ["Ada"]), "solution")


@pytest.mark.parametrize("target", ["solution", "answer"])
def test_loss_is_cross_entropy_of_the_written_tokens(config, target):
    trainer = Trainer(dataclasses.replace(config, model=ModelConfig(dtype="float64", lora_rank=0)))
    model, task = trainer.model, trainer.task
    examples = task.train[:5]
    written = write_down(model, task, examples, target)
    texts = model.tokenizer.decode([row.tolist() for row in written.completion_ids], skip_special_tokens=True)
    assert texts == [target_text(example, target) for example in examples]
    assert not written.truncated(model.eos_token_ids).any()
    sums, tokens = 0.0, 0
    for example in examples:
        prompt = model.tokenizer.apply_chat_template(
            task.messages(example.question), add_generation_prompt=True, return_dict=False
        )
        answer = [*model.tokenizer.encode(target_text(example, target)), model.eos_token_ids[0]]
        logits = model.lm(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        sums = sums + F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        tokens += len(answer)
    expected = sums / tokens
    parameters = [p for p in model.lm.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(expected, parameters)
    for budget in (10_000, 40):
        model.zero_grad()
        trainer.config = dataclasses.replace(trainer.config, token_budget=budget)
        nll = trainer.likelihood_gradients(written)
        assert nll == pytest.approx(expected.item(), abs=1e-6)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=0)


def test_a_run_learns_resumes_and_is_gone_on_from(config, tmp_path):
    config = dataclasses.replace(config, updates=12, save_every=4)
    train(config)
    folder = tmp_path / "warm"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["nll"] < 0.8 * rows[0]["nll"]
    assert "nats" in (folder / "report.md").read_text()
    assert not (folder / "check.json").exists()  # there is no reward to look at
    saved = HybridCausalLM.from_pretrained(newest_checkpoint(folder))
    assert saved.settings.latent_mode == "discrete"

    on = dataclasses.replace(
        config, name="on", objective="hrpo", updates=1, model=ModelConfig(str(folder), lora_rank=4)
    )
    train(on)
    trained = HybridCausalLM.from_pretrained(newest_checkpoint(tmp_path / "on"))
    assert trained.settings.latent_mode == "hybrid"
    assert trained.settings.base_model == str(newest_checkpoint(folder))
    for name, value in saved.lm.state_dict().items():
        layer, leaf = name.rpartition(".")[::2]
        here = trained.bare_lm.state_dict()
        assert torch.equal(here[name] if name in here else here[f"{layer}.base_layer.{leaf}"], value), name


def test_resumed_equals_never_stopped(config):
    whole = Trainer(dataclasses.replace(config, model=ModelConfig(lora_rank=4)))
    for _ in range(3):
        whole.train_step()
    stopped = Trainer(dataclasses.replace(config, name="stopped", model=ModelConfig(lora_rank=4)))
    stopped.train_step()
    stopped.save()
    resumed = Trainer(dataclasses.replace(config, name="stopped", model=ModelConfig(lora_rank=4)), resume=True)
    for _ in range(2):
        resumed.train_step()
    for (name, here), there in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(here, there), name
