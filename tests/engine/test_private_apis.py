"""The private names of other libraries that hrpo uses, and what it takes each of them to do.

An upgrade that changes one breaks a test here. Where a name is used without being listed, the last test says so.
"""

import ast
from pathlib import Path

import pytest
import torch
from models import random_lm
from peft import LoraConfig, get_peft_model
from torch import nn

SOURCE = Path(__file__).parents[2] / "src" / "hrpo"
ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs a PyTorch that was built with oneDNN"
)


@ONEDNN
@pytest.mark.parametrize("rows", [1, 32])
def test_packed_weights_multiply_as_plain_ones(rows):
    """`torch.ops.mkldnn._reorder_linear_weight` and `_linear_pointwise`: products with weights packed ahead."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(40)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    assert packed.is_mkldnn
    for one in (weight, packed):
        out = torch.ops.mkldnn._linear_pointwise(x, one, bias, "none", [], "")
        torch.testing.assert_close(out, nn.functional.linear(x, weight, bias))


@ONEDNN
def test_what_the_processor_has():
    """`_is_mkldnn_bf16_supported`, `_is_avx512_bf16_supported` and `_is_amx_tile_supported` answer yes or no."""
    answers = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.cpu._is_avx512_bf16_supported(),
        torch.cpu._is_amx_tile_supported(),
    )
    assert all(isinstance(answer, bool) for answer in answers)


def test_attention_is_looked_up_by_the_config():
    """transformers' `config._attn_implementation` names the attention, which `set_attn_implementation` changes."""
    lm = random_lm("llama")
    before = lm.config._attn_implementation
    lm.set_attn_implementation("eager" if before != "eager" else "sdpa")
    assert lm.config._attn_implementation != before
    assert lm.model.layers[0].self_attn.config is lm.config


def test_adapters_are_off_where_their_layers_say_so():
    """PEFT's `_disable_adapters` is what `disable_adapter` sets on each layer, and what a layer goes by."""
    lm = get_peft_model(random_lm("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    layer = lm.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, layer.in_features, dtype=layer.weight.dtype)
    assert layer._disable_adapters is False
    adapted = layer(x)
    with lm.disable_adapter():
        assert layer._disable_adapters is True
    layer._disable_adapters = True
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    assert not torch.allclose(adapted, layer(x))


def test_a_forward_of_its_own_stands_before_the_class():
    """`vars(layer)["forward"]` is what a module's call runs, and removing it brings the class's back."""
    layer = nn.Linear(2, 2)
    vars(layer)["forward"] = lambda x: x + 1
    assert torch.equal(layer(torch.ones(2)), torch.full((2,), 2.0))
    del vars(layer)["forward"]
    assert layer.forward.__func__ is nn.Linear.forward


def test_modules_and_hooks_stand_in_their_dicts():
    """torch's `_modules`, and the hooks that a block may have: `_forward_hooks` and its like."""
    block = nn.Sequential(nn.Linear(2, 2))
    assert list(vars(block)["_modules"]) == ["0"]
    handle = block.register_forward_hook(lambda *_: None)
    assert len(block._forward_hooks) == 1
    handle.remove()
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        assert len(getattr(block, name)) == 0


def test_numbers_of_sympy_know_their_precision():
    sympy = pytest.importorskip("sympy")
    assert sympy.Float("0.1", 15)._prec > 1


def test_traced_code_has_a_limit_of_variants():
    """`torch._dynamo.config.recompile_limit` is the number of variants that a function is compiled in."""
    assert torch._dynamo.config.recompile_limit > 0


OURS = {"_check_right", "_reference", "_exit", "_replace"}  # of hrpo's own classes, and public in spite of their names
LISTED = {
    "_attn_implementation",
    "_disable_adapters",
    "_dynamo",
    "_is_amx_tile_supported",
    "_is_avx512_bf16_supported",
    "_is_mkldnn_bf16_supported",
    "_linear_pointwise",
    "_loglikelihood_tokens",  # of lm-eval, whose subclass is tested in tests/evaluation/test_lm_eval.py
    "_reorder_linear_weight",
}


def test_no_other_private_name_is_used():
    used = {
        node.attr
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if ast.unparse(node.value) not in ("self", "cls")
    }
    assert used - OURS == LISTED
