"""Conversations as prompts: with and without a system role, a template, BOS, a padding token."""

import pytest
import torch
from models import byte_level
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM

from hrpo.config import EvalConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.errors import InputError
from hrpo.prompts import encode
from hrpo.tasks.task import Example as Shot
from hrpo.tasks.task import ask, make_preamble
from hrpo.trainer import Trainer

TURNS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + TURNS
RAISES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
IGNORES = TURNS.replace("%}<{{", "%}{% if m['role'] != 'system' %}<{{", 1).replace(
    "{% endfor %}", "{% endif %}{% endfor %}"
)
ALTERNATES = "{% if messages[1]['role'] != 'assistant' %}{{ raise_exception('no alternation') }}{% endif %}" + TURNS

SHOTS = [Shot("1+1?", "2", "it is\n#### 2"), Shot("2+2?", "4", "#### 4")]
ALL = ask(make_preamble("Think.", SHOTS), "3+3?")
BARE = ask([], "3+3?")


def text(tokenizer, messages):
    (ids,) = encode(tokenizer, [messages])
    return tokenizer.decode(ids)


def begins(tokenizer, *, bos=True, eos=False):
    """Let it write BOS before a text, and EOS after it."""
    single = "<bos> " * bos + "$A" + " <eos>" * eos
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


# ---- the system text --------------------------------------------------------------------------------------------


def test_a_system_role_is_used():
    tokenizer = byte_level(chat_template=TURNS)
    assert text(tokenizer, ALL) == (
        "<system>Think.<user>1+1?<assistant>it is\n#### 2<user>2+2?<assistant>#### 4<user>3+3?<assistant>"
    )
    assert text(tokenizer, BARE) == "<user>3+3?<assistant>"


@pytest.mark.parametrize("template", [RAISES, IGNORES], ids=["raises", "ignores"])
def test_without_a_system_role_the_first_user_turn_begins_with_it(template):
    tokenizer = byte_level(chat_template=template)
    assert text(tokenizer, ALL) == (
        "<user>Think.\n\n1+1?<assistant>it is\n#### 2<user>2+2?<assistant>#### 4<user>3+3?<assistant>"
    )
    assert text(tokenizer, ask(make_preamble("Think.", []), "3+3?")) == "<user>Think.\n\n3+3?<assistant>"
    assert text(tokenizer, BARE) == "<user>3+3?<assistant>"  # nothing to move
    assert ALL[0]["role"] == "system"  # the messages stay as they were
    assert ALL[1]["content"] == "1+1?"


def test_it_is_found_out_once_for_each_template(monkeypatch):
    tokenizer, rendered = byte_level(chat_template=IGNORES), []
    apply = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda chat, **options: rendered.append(chat) or apply(chat, **options)
    )
    encode(tokenizer, [ALL, ALL])
    encode(tokenizer, [ALL])
    assert len(rendered) == 1 + 3
    tokenizer.chat_template = TURNS
    assert text(tokenizer, ALL).startswith("<system>Think.<user>1+1?")


def test_a_template_that_refuses_is_named():
    with pytest.raises(InputError, match=r"^model\.name: the chat template .* no alternation; mend"):
        encode(byte_level(chat_template=ALTERNATES), [[*BARE, *BARE]])


# ---- no template ------------------------------------------------------------------------------------------------


def test_without_a_template_it_is_plain_text():
    tokenizer = byte_level()
    assert text(tokenizer, ALL) == "Think.\n\n1+1?\nit is\n#### 2\n\n2+2?\n#### 4\n\n3+3?\n"
    assert text(tokenizer, BARE) == "3+3?\n"


def test_without_a_tokenizer():
    with pytest.raises(InputError, match=r"^model\.name: .* no tokenizer"):
        encode(None, [BARE])


# ---- BOS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, TURNS, WITH_BOS], ids=["no template", "template without", "with BOS"])
@pytest.mark.parametrize("eos", [False, True])
def test_bos_exactly_once(template, eos):
    tokenizer = begins(byte_level(chat_template=template), eos=eos)
    (ids,) = encode(tokenizer, [ALL])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids  # there the answer would have ended


def test_no_bos_where_the_tokenizer_writes_none():
    for template in (None, TURNS):
        tokenizer = byte_level(chat_template=template)
        assert tokenizer.bos_token_id not in encode(tokenizer, [ALL])[0]
        tokenizer = begins(byte_level(chat_template=template), bos=False, eos=True)
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(encode(tokenizer, [ALL])[0])
    tokenizer = byte_level(chat_template=WITH_BOS)  # its template alone does
    assert encode(tokenizer, [ALL])[0].count(tokenizer.bos_token_id) == 1


# ---- a base model, end to end -----------------------------------------------------------------------------------


def test_a_base_model_trains(tmp_path):
    """No padding token, no template, prompts of several lengths."""
    tokenizer = begins(byte_level())
    assert tokenizer.pad_token is None
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
    )
    lm.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = TrainConfig(
        folder=str(tmp_path / "runs"),
        updates=1,
        model=ModelConfig(name=str(tmp_path / "base"), lora_rank=4),
        rollout=RolloutConfig(prompts=3, group_size=2, max_new_tokens=8, temperature=2.0),
        eval=EvalConfig(problems=0),
    )
    trainer = Trainer(config)
    assert trainer.model.tokenizer.pad_token is None
    lengths = {len(ids) for ids in encode(trainer.model.tokenizer, [ask([], "1"), ask([], "1+2")])}
    assert len(lengths) == 2
    assert trainer.train_step()["replay_error"] < 1e-4
