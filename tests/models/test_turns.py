"""Which tokens end a completion, and what is said where none is known to."""

from types import SimpleNamespace

import pytest
import torch
from models import SHAPE, byte_level
from transformers import AutoModelForCausalLM, LlamaConfig

from hrpo import HybridCausalLM, generate
from hrpo.models.turns import end_tokens

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_with(template, eos="<|endoftext|>"):
    tokenizer = byte_level(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.eos_token = eos
    return tokenizer


def ends(tokenizer, eos, vocab=10**6):
    """End tokens as text, of a model whose generation config names some."""
    ids = tokenizer.convert_tokens_to_ids(eos) if eos else None
    head = SimpleNamespace(weight=torch.empty(vocab, 0))
    lm = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ids), get_output_embeddings=lambda: head)
    return tokenizer.convert_ids_to_tokens(end_tokens(lm, tokenizer))


@pytest.mark.parametrize(
    ("template", "own", "config", "all_of_them"),
    [
        (CHATML, "<|im_end|>", "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),
        (CHATML, "<|im_end|>", None, ["<|im_end|>"]),
        (CHATML, "<|endoftext|>", "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),
        (CHATML, "<|endoftext|>", None, ["<|endoftext|>", "<|im_end|>"]),
        (CHATML, None, ["<|im_end|>", "<eos>"], ["<|im_end|>", "<eos>"]),
        (CHATML, None, None, ["<|im_end|>"]),
        (None, "<|endoftext|>", "<eos>", ["<eos>", "<|endoftext|>"]),
        (None, None, "<eos>", ["<eos>"]),
        (None, None, None, []),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", "<eos>", None, ["<eos>"]),
        ("{% for m in messages %}{{ m.content }}\n\n{% endfor %}", None, None, []),
        ("<|im_start|>{{ messages[0].content }}<|im_end|>", None, None, []),  # no place for an answer
        ("{{ raise_exception('no') }}", None, "<eos>", ["<eos>"]),
    ],
)
def test_ends_are_united(template, own, config, all_of_them):
    assert ends(tokenizer_with(template, own), config) == all_of_them


def test_an_end_that_the_model_has_no_logits_for_is_none():
    assert ends(tokenizer_with(CHATML, "<|im_end|>"), None, vocab=200) == []


def saved(folder, tokenizer, eos):
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": len(tokenizer)}
    lm = AutoModelForCausalLM.from_config(LlamaConfig(**shape, eos_token_id=eos, pad_token_id=0))
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return HybridCausalLM.from_pretrained(folder)


def test_a_completion_ends_with_the_tokenizers_eos(tmp_path, caplog):
    tokenizer = tokenizer_with(CHATML, "<|im_end|>")
    base, end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    model = saved(tmp_path, tokenizer, base)
    assert (model.eos_token_ids, model.end_texts) == ([base, end], ["<|endoftext|>", "<|im_end|>"])
    rollout = generate(model, [[5]], forced_ids=torch.tensor([[70, end, 5, 5]]))
    assert rollout.lengths.tolist() == [2]
    assert not rollout.truncated(model.eos_token_ids).any()
    assert not caplog.records


def test_loading_says_where_nothing_ends(tmp_path, caplog):
    model = saved(tmp_path, tokenizer_with(None, None), None)
    assert model.eos_token_ids == []
    (record,) = caplog.records
    assert f"{tmp_path}: no token is known to end a completion (EOS)" in record.getMessage()
    assert generate(model, [[5]], max_new_tokens=3).lengths.tolist() == [3]
