"""Prompts over the limit: left out and counted, or refused."""

import dataclasses

import pytest

from hrpo import HybridCausalLM
from hrpo.chat import encode
from hrpo.common.errors import InputError
from hrpo.config.schema import ModelConfig, RolloutConfig, TrainConfig
from hrpo.tasks import Example, Task
from hrpo.training.length_filter import context_length, fitting, longest_prompt, show_dropped, too_long
from hrpo.training.run import Run

QUESTIONS = ["1+2", "1+2*3", "1+2*3-4", "1+2*3-4+5", "1+2*3-4+5*6"]


@pytest.fixture(scope="module")
def model():
    return HybridCausalLM.from_pretrained("tiny")


@pytest.fixture
def task():
    return Task("mine", "number", [Example(q, "1") for q in QUESTIONS], [Example("1+1", "2")])


def config(**rollout):
    return TrainConfig(model=ModelConfig(lora_rank=0), rollout=RolloutConfig(max_new_tokens=48, **rollout))


def fits(task, model, tested=500, target=None, **rollout):
    """The task without what is too long."""
    return fitting(task, model, RolloutConfig(max_new_tokens=48, **rollout), tested, target)


def test_long_prompts_are_left_out_and_counted(model, task, capsys):
    lengths = [len(prompt) for prompt in encode(model.tokenizer, [task.messages(q) for q in QUESTIONS])]
    limit = lengths[2]
    assert too_long(model, task, task.train, limit) == [3, 4]
    kept = fits(task, model, max_prompt_tokens=limit)
    assert [example.question for example in kept.train] == QUESTIONS[:3]
    show_dropped(kept)
    assert f"mine: left out 2 training problems with a prompt above {limit} tokens" in capsys.readouterr().out
    assert fits(task, model, max_prompt_tokens=lengths[4]) is task
    assert fits(task, model) is task


def test_refused_where_asked(model, task):
    with pytest.raises(InputError, match=r"of 5 training problems .* rollout\.long_prompts"):
        fits(task, model, max_prompt_tokens=6, long_prompts="refuse")
    with pytest.raises(InputError, match="leaves none"):
        fits(task, model, max_prompt_tokens=1)


def test_context(model, task):
    context = context_length(model)
    assert longest_prompt(model, 48) == context - 48
    assert longest_prompt(model, 48, 10) == 10
    with pytest.raises(InputError, match=r"rollout\.max_new_tokens: .* no room"):
        longest_prompt(model, context)
    long_test = dataclasses.replace(task, test=[Example("1+" * context + "1", "2")])
    with pytest.raises(InputError, match=r"1 of 1 test prompts"):
        fits(long_test, model)
    assert fits(long_test, model, tested=0) is long_test


def test_top_k_above_the_vocabulary(model, tmp_path):
    settings = dataclasses.replace(config(top_k=model.vocab_size + 1), output_dir=str(tmp_path))
    with pytest.raises(InputError, match=rf"rollout\.top_k: the model has {model.vocab_size} tokens"):
        Run(settings)
    assert list(tmp_path.iterdir()) == []
    assert model.vocab_size < RolloutConfig().top_k  # the default takes what there is


def test_solutions_that_leave_the_context_are_left_out(model):
    context = context_length(model)
    room = context - len(encode(model.tokenizer, [[{"role": "user", "content": "1+2"}]])[0]) - 1  # EOS
    answer = "\n#### 3"
    longest = "1" * (room - len(model.tokenizer.encode(answer)))  # a token a digit
    examples = [Example("1+2", "3", longest + answer), Example("1+2", "3", longest + "1" + answer)]
    task = Task("mine", "number", examples, [])
    kept = fits(task, model, target="solution")
    assert kept.train == examples[:1]
    assert list(kept.dropped.items()) == [(f"training problems that have with their solution over {context} tokens", 1)]
    assert fits(task, model) is task  # nothing is written down there
    assert fits(task, model, target="answer") is task
    with pytest.raises(InputError, match=r"sft.target: 1 of 2 .* rollout\.long_prompts"):
        fits(task, model, target="solution", long_prompts="refuse")
    with pytest.raises(InputError, match=r"sft.target: 1 of 1 .* leaves none"):
        fits(dataclasses.replace(task, train=examples[1:]), model, target="solution")
