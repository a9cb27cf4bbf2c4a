"""Supervised fine-tuning: what is learnt, with which loss, and that reinforcement learning goes on from it."""

import dataclasses
import json

import pytest
import torch
from models import SHAPE, Letters, byte_level, random_lm, sentence_piece
from tokenizers import AddedToken
from torch.nn import functional as F
from transformers import LlamaConfig

from hrpo import HybridCausalLM, HybridGate
from hrpo.chat import encode
from hrpo.common.errors import InputError
from hrpo.config.schema import (
    CheckConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from hrpo.model import HybridSettings
from hrpo.sft import target_text, teacher_forced_rollout, written_ids
from hrpo.storage.run_dir import newest_checkpoint
from hrpo.tasks import Example, Task
from hrpo.training.length_filter import fitting
from hrpo.training.run import Run
from hrpo.training.train import train


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="warm",
        output_dir=str(tmp_path),
        max_steps=3,
        algorithm="sft",
        model=ModelConfig(lora_rank=0),
        sft=SftConfig(batch=6),
        rollout=RolloutConfig(prompts_per_step=3, group_size=4, max_new_tokens=48),
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
    begun = Run(dataclasses.replace(config, model=ModelConfig(dtype="float64", lora_rank=0)))
    model, task = begun.model, begun.trainer.task
    examples = task.train[:5]
    written = teacher_forced_rollout(model, task, examples, target)
    texts = model.tokenizer.decode([row.tolist() for row in written.completion_ids], skip_special_tokens=True)
    assert texts == [target_text(example, target) for example in examples]
    assert not written.truncated(model.eos_token_ids).any()
    sums, tokens = 0.0, 0
    for example in examples:
        prompt = model.tokenizer.apply_chat_template(
            task.messages(example.question), add_generation_prompt=True, return_dict=False
        )
        answer = [*model.tokenizer.encode(target_text(example, target)), model.tokenizer.eos_token_id]
        logits = model.lm(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        sums = sums + F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        tokens += len(answer)
    expected = sums / tokens
    parameters = [p for p in model.lm.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(expected, parameters)
    for budget in (10_000, 40):
        model.zero_grad()
        begun.trainer.settings = dataclasses.replace(begun.trainer.settings, max_tokens=budget)
        nll = begun.trainer.gradients(written, torch.ones(len(written)))["nll"]
        assert nll == pytest.approx(expected.item(), abs=1e-6)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=0)


# ---- what is taught: the assistant's turn as the chat template has it ------------------------------------------------

HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + HEADER
TRIMS = CHATML.replace("m.content", "m.content | trim")
THOUGHTS = "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' and loop.last }}"  # empty ones, in the last turn
EMPTY_THOUGHTS = CHATML.replace("{{ m.content }}", THOUGHTS + "{{ m.content }}")
CHANNELS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>"
    "{{ m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
TIGHT_BRACKETS = BRACKETS.replace(" {{ m.content }} {{ eos_token }}", "{{ m.content }}{{ eos_token }} ")
NO_END = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
OPEN_THOUGHTS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif").replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"
)
NAMES = ["<|im_start|>", "<|im_end|>", "<|channel|>", "<|message|>", "<|return|>", "<|other|>", "<think>", "</think>"]
SETTINGS, TASK = HybridSettings("memory"), Task("mine", "number", [], [])
EXAMPLE = Example("add 3 and 4", "7", "3+4=7\n#### 7")


def chat_model(tokenizer, ends=()):
    """A model that stops at these tokens, and at its tokenizer's EOS."""
    tokenizer.add_tokens([AddedToken(name, normalized=False, special="think" not in name) for name in NAMES])
    shape = SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = HybridCausalLM(
        random_lm(LlamaConfig(**shape), vocab_size=len(tokenizer)), HybridGate(24), SETTINGS, tokenizer
    )
    model.lm.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([*ends, tokenizer.eos_token])
    return model


def taught(model, example=EXAMPLE):
    """The prompt, and what is learnt after it, as text."""
    written = teacher_forced_rollout(model, TASK, [example], "solution")
    ids, mask = written.completion_ids[0], written.completion_mask[0].bool()
    assert not written.truncated(model.eos_token_ids)
    tokens = written.prompt_ids[0].tolist() + ids[mask].tolist()
    whole = model.tokenizer.encode(model.tokenizer.decode(tokens), add_special_tokens=False)
    return whole, tokens, model.tokenizer.decode(ids[mask])


@pytest.mark.parametrize("make", [byte_level, Letters])
@pytest.mark.parametrize(
    ("template", "ends", "expected"),
    [
        (CHATML, ["<|other|>", "<|im_end|>"], "{}<|im_end|>"),
        (TRIMS, ["<|im_end|>"], "{}<|im_end|>"),
        (EMPTY_THOUGHTS, ["<|im_end|>"], "<think>\n\n</think>\n\n{}<|im_end|>"),
        (CHANNELS, ["<|other|>", "<|return|>"], "<|channel|>final<|message|>{}<|return|>"),
        (BRACKETS, ["<|other|>"], " {} EOS"),
        (TIGHT_BRACKETS, ["<|other|>"], "{}EOS"),
        (NO_END, ["<|other|>"], "{}EOS"),
        (None, ["<|other|>"], "{}EOS"),
    ],
)
def test_the_turn_is_the_templates(make, template, ends, expected):
    model = chat_model(make(chat_template=template), ends)
    whole, tokens, said = taught(model)
    assert said == expected.format(EXAMPLE.solution).replace("EOS", model.tokenizer.eos_token)
    assert whole == tokens


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("template", [CHATML, EMPTY_THOUGHTS, BRACKETS, TIGHT_BRACKETS, None])
def test_a_tokenizer_that_begins_texts_with_a_space(template, prefix):
    model = chat_model(sentence_piece(prefix=prefix, chat_template=template), ["<|im_end|>"])
    messages = [*TASK.messages(EXAMPLE.question), {"role": "assistant", "content": EXAMPLE.solution}]
    (whole,) = encode(model.tokenizer, [messages])
    (prompt,), (answer,) = written_ids(model, TASK, [EXAMPLE], "solution")
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>" if template in (CHATML, EMPTY_THOUGHTS) else "</s>")
    assert answer[-1] == end
    assert prompt + answer == whole[: len(prompt + answer)] + ([end] if template is None else [])
    assert (prompt + answer).count(end) == (2 if template in (CHATML, EMPTY_THOUGHTS) else 1)


@pytest.mark.parametrize("solution", ["3+4=7\n#### 7", "<think>so</think>\n#### 7"])
def test_an_answer_that_cannot_follow_the_prompt_is_refused(solution):
    model = chat_model(byte_level(chat_template=OPEN_THOUGHTS), ["<|im_end|>"])
    refused = r"^(sft\.target: the chat template .* ends a prompt with '<think>\\n'|model\.name: .* text of the answer)"
    with pytest.raises(InputError, match=refused):
        teacher_forced_rollout(model, TASK, [Example("add", "7", solution)], "solution")


def test_names_of_control_tokens_in_a_solution_are_text():
    model = chat_model(byte_level(chat_template=CHATML), ["<|im_end|>"])
    solution = "at <|im_end|> and <eos>\n#### 7"
    assert taught(model, Example("add", "7", solution))[2] == solution + "<|im_end|>"


def test_thoughts_in_a_solution_are_the_templates():
    """A template that writes thoughts anew writes its own tokens."""
    again = (
        "{% if '</think>' in m.content %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}\n"
        "</think>\n\n{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}"
    )
    model = chat_model(byte_level(chat_template=CHATML.replace("{{ m.content }}", again)), ["<|im_end|>"])
    (_,), (answer,) = written_ids(model, TASK, [Example("add", "7", "<think>a</think>#### 7")], "solution")
    assert model.tokenizer.decode(answer) == "<think>\na\n</think>\n\n#### 7<|im_end|>"
    assert set(model.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])) < set(answer)


def test_solutions_that_cannot_follow_are_left_out():
    model = chat_model(sentence_piece(chat_template=TIGHT_BRACKETS))
    refuse = RolloutConfig(max_new_tokens=8, long_prompts="refuse")
    joined = Example("add", "7", "(3+4)=7\n#### 7")  # "](" is one token
    task = Task("mine", "number", [EXAMPLE, joined], [])
    kept = fitting(task, model, RolloutConfig(max_new_tokens=8), 0, "solution")
    assert kept.train == [EXAMPLE]
    assert kept.dropped == {"training problems whose solution the chat template does not write after its prompt": 1}
    with pytest.raises(InputError, match=r"^sft\.target: .* ends a prompt with '\]', .* goes on with '\]\(3"):
        fitting(task, model, refuse, 0, "solution")
    with pytest.raises(InputError, match=r"^sft\.target: the chat template"):
        fitting(dataclasses.replace(task, train=[joined]), model, RolloutConfig(), 0, "solution")


def test_a_run_learns_resumes_and_is_gone_on_from(config, tmp_path):
    config = dataclasses.replace(config, max_steps=12, save_every=4)
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
        config, name="on", algorithm="hrpo", max_steps=1, model=ModelConfig(str(folder), lora_rank=4)
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
    whole = Run(dataclasses.replace(config, model=ModelConfig(lora_rank=4)))
    for _ in range(3):
        whole.train_step()
    stopped = Run(dataclasses.replace(config, name="stopped", model=ModelConfig(lora_rank=4)))
    stopped.train_step()
    stopped.save()
    resumed = Run(dataclasses.replace(config, name="stopped", model=ModelConfig(lora_rank=4)), resume=True)
    for _ in range(2):
        resumed.train_step()
    for (name, here), there in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(here, there), name
