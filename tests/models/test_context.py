"""Position embeddings that change with the length of a sequence: served up to where they do, refused beyond."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from models import IDS, PROMPTS, SAMPLER, SHAPE, random_model
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, PhimoeConfig, Qwen2Config

from hrpo import HybridCausalLM, generate, replay
from hrpo.common.errors import InputError
from hrpo.config.schema import RolloutConfig
from hrpo.engine.interface import DEFAULT as FASTEST
from hrpo.engine.interface import REFERENCE
from hrpo.models.context import RopeLimit, rope_limit
from hrpo.tasks import Example, Task
from hrpo.training.length_filter import check_test_prompts, context_length, fitting, longest_prompt

LIMIT = 12
NO_HEAD_DIM = {name: value for name, value in SHAPE.items() if name != "head_dim"}
FACTORS = {"short_factor": [1.0, 1.0, 1.0], "long_factor": [1.5, 6.0, 30.0]}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}
ORIGINAL = {"original_max_position_embeddings": LIMIT}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "query_pre_attn_scalar": 6}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


def llama(rope, **changes):
    return LlamaConfig(**SHAPE | IDS | changes, rope_parameters=rope)


def gemma3(**by_layer):
    rope = {"sliding_attention": DEFAULT, "full_attention": DEFAULT} | by_layer
    return Gemma3TextConfig(**SHAPE | IDS | LAYERS | {"max_position_embeddings": 32}, rope_parameters=rope)


LIMITED = {
    "phi3": lambda: Phi3Config(**NO_HEAD_DIM, **IDS, **ORIGINAL, rope_parameters=dict(LONG)),
    "phimoe": lambda: PhimoeConfig(
        **NO_HEAD_DIM,
        **IDS,
        num_local_experts=4,
        rope_parameters={**LONG, **ORIGINAL, "short_mscale": 1.1, "long_mscale": 1.3},
    ),
    "llama, LongRoPE": lambda: llama({**LONG, **ORIGINAL}),
    "llama, dynamic": lambda: llama(dict(DYNAMIC), max_position_embeddings=LIMIT),
    "gemma3, LongRoPE in some layers": lambda: gemma3(full_attention={**LONG, **ORIGINAL}),
}


@pytest.mark.parametrize("name", LIMITED)
@torch.no_grad()
def test_law_1_up_to_the_limit_and_a_refusal_beyond(name):
    model = random_model(LIMITED[name]())
    assert rope_limit(model.bare_lm.config).tokens == context_length(model) == LIMIT
    atol = 1e-5 if name == "phimoe" else 1e-8  # it routes in float32
    for techniques in (FASTEST, REFERENCE):
        longest = LIMIT - max(map(len, PROMPTS))
        options = {**SAMPLER, "options": techniques, "group_size": 2}
        rollout = generate(model, PROMPTS, **options | {"max_new_tokens": longest})
        logprobs, _ = replay(model, rollout, options=techniques)
        torch.testing.assert_close(logprobs, rollout.sample_logprobs, atol=atol, rtol=0)
        with pytest.raises(InputError, match=rf"^max_new_tokens: 5 after a prompt of 8 .* {LIMIT} tokens, beyond"):
            generate(model, PROMPTS, **options | {"max_new_tokens": longest + 1})
        with pytest.raises(InputError, match=r"^max_new_tokens: 1 after a prompt of 13 "):  # beyond it from the start
            generate(model, [[7] * (LIMIT + 1), [8]], **options | {"max_new_tokens": 1})


@torch.no_grad()
def test_replay_refuses_what_was_rolled_out_elsewhere():
    rollout = generate(random_model("llama"), PROMPTS, **SAMPLER | {"eos_token_id": []})
    with pytest.raises(InputError, match=r"^rollout: 21 tokens of a sequence leave the model's context of 12"):
        replay(random_model(LIMITED["phi3"]()), rollout)
    short = dataclasses.replace(rollout, completion_mask=rollout.completion_mask.clone())
    short.completion_mask[:, 5:] = 0  # padding is not fed
    replay(random_model(LIMITED["phi3"]()), short)


@pytest.mark.parametrize("name", ["phi3", "llama, dynamic"])
@torch.no_grad()
def test_greedy_decoding_up_to_the_limit_is_that_of_transformers(name):
    model = random_model(LIMITED[name](), latent_mode="discrete")
    options = {**SAMPLER, "greedy": True, "max_new_tokens": 4, "eos_token_id": []}
    ids = generate(model, PROMPTS, **options).completion_ids
    for prompt, row in zip(PROMPTS, ids, strict=True):
        alone = torch.tensor([prompt])
        out = model.lm.generate(alone, attention_mask=torch.ones_like(alone), max_new_tokens=4, do_sample=False)
        own = out[0, len(prompt) :]  # it ends at the config's EOS
        assert torch.equal(row[: len(own)], own)


@pytest.mark.parametrize(
    "config",
    [
        llama(None),
        llama({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        llama({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, **ORIGINAL}),
        Qwen2Config(**SHAPE, **IDS),
        gemma3(),
    ],
    ids=["llama", "linear", "yarn", "qwen2", "gemma3"],
)
@torch.no_grad()
def test_others_are_the_same_at_every_length(config):
    model = random_model(config)
    assert rope_limit(model.bare_lm.config) is None
    rollout = generate(model, PROMPTS, **SAMPLER)
    torch.testing.assert_close(replay(model, rollout)[0], rollout.sample_logprobs, atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_configs_of_code_that_comes_with_a_model(kind):
    """Such code keeps transformers' older names, and a length beside the parameters."""
    config = SimpleNamespace(rope_parameters={"type": kind, **FACTORS}, max_position_embeddings=64, **ORIGINAL)
    config.get_text_config = lambda: config
    assert rope_limit(config) == RopeLimit(LIMIT, kind)


def test_it_is_a_limit_before_a_run_or_an_evaluation_begins():
    model = HybridCausalLM.from_pretrained("tiny")
    model.bare_lm.config.rope_parameters = {**LONG, "original_max_position_embeddings": 20}
    why = "context of 20 tokens, beyond which its longrope position embedding changes"
    with pytest.raises(InputError, match=rf"^rollout\.max_new_tokens: 20 leave no room .* {why}"):
        longest_prompt(model, 20)
    long = "+".join("1" * 12)
    with pytest.raises(InputError, match=rf"^--max_new_tokens: 1 of 1 test prompts have over 10 tokens, .* {why}"):
        check_test_prompts(Task("mine", "number", [], []), model, [Example(long, "12")], 10, "--max_new_tokens")

    endless = Task("mine", "number", (Example(long, "12"),), [])  # any sequence but a list is made as it is asked for
    with pytest.raises(
        InputError, match=rf"^rollout\.max_prompt_tokens: training problems have prompts above 10 .*{why}"
    ):
        fitting(endless, model, RolloutConfig(max_new_tokens=10), 0, None)
