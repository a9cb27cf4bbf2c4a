"""Compiled code for decoding computes what PyTorch computes, for each instruction set, and is no requirement."""

import functools
import gc
import logging
import shlex
import shutil
import weakref

import pytest
import torch
from models import CONFIGS, PROMPTS, SAMPLER, inference_copy, random_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from hrpo import generate
from hrpo.engine import like_llama
from hrpo.engine.attention import laid_out, packed_block
from hrpo.engine.cpu import build, kernels, linear
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.cpu.blocks import CompiledBlock
from hrpo.engine.cpu.build import MACHINES, Compiled
from hrpo.engine.cpu.decode_attention import attend_compiled
from hrpo.engine.cpu.linear import LinearParts, PackedProduct, product_dtype
from hrpo.engine.cpu.mixing import mix_compiled
from hrpo.engine.cpu.norms import CompiledNorm, compiled_norms
from hrpo.engine.cpu.top_k import top_k_compiled
from hrpo.engine.decoders import make_decoder
from hrpo.engine.interface import DEFAULT, REFERENCE, DecodingKernels
from hrpo.engine.kv import KVLayout, PromptGroups, zeros
from hrpo.engine.packing_probe import packs_up_to

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
DTYPES = [torch.float32, torch.bfloat16]
HERE = torch.backends.cpu.get_cpu_capability()
SETS = ["AVX512", "AVX2", "DEFAULT"]
LIKE_LLAMA = {"llama", "qwen2", "qwen3", "mistral"}


@pytest.fixture(scope="module", params=SETS)
def library(request, tmp_path_factory):
    """The library for an instruction set that this machine has."""
    if request.param in SETS[: SETS.index(HERE)] if HERE in SETS else request.param != "DEFAULT":
        pytest.skip(f"this machine has no {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
        return Compiled(build._library(tmp_path_factory.mktemp("compiled")))


def has_products(library, dtype=torch.float32):
    if not library.find("multiply", torch.empty(0, dtype=dtype)):
        pytest.skip(f"oneDNN does products of {dtype} with these instructions")


def attention(query, key, value, shared, own, groups, lengths, ages, scale):
    """What `attend_compiled` should give, in float64: row by row, its keys and values end to end."""
    out = torch.empty(*query.shape[:2], value.shape[2], dtype=torch.float64)
    per = query.shape[1] // key.shape[1]
    slot_of = {row: slot for slot, rows in enumerate(groups) for row in rows}
    for row, slot in slot_of.items():
        P, t = lengths[slot], ages[row]
        keys = torch.cat([shared[0][slot, ..., :P], own[0][row, ..., :t], key[row].unsqueeze(2)], dim=2).double()
        values = torch.cat([shared[1][slot, :, :P], own[1][row, :, :t], value[row].unsqueeze(1)], dim=1).double()
        keys, values = keys.repeat_interleave(per, 0), values.repeat_interleave(per, 0)
        scores = query[row].double().unsqueeze(1) @ keys * scale  # (H, 1, t)
        out[row] = (torch.softmax(scores, dim=2) @ values).squeeze(1)
    return out


@pytest.mark.sampled("library", "dtype")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "per", "d", "d_v", "room"),
    [(3, 3, 64, 64, 40), (1, 8, 6, 10, 33), (4, 1, 80, 80, 17), (2, 7, 32, 128, 70)],
    ids=str,
)
def test_attention(library, dtype, heads, per, d, d_v, room):
    """Groups of several sizes, more rows than a thread takes at once, out of order, of different ages."""
    torch.manual_seed(0)
    groups, lengths = [[4, 0, 2], [*range(5, 16)], [1, 3]], [37, 1, 16]
    ages = [0, 3, 7, room - 1, 15, 16, *range(10)]

    def filled(*shape):
        return zeros(torch.empty(0, dtype=dtype), *shape).normal_()

    shared = filled(4, heads, d, 37), filled(4, heads, 37, d_v)
    own = filled(20, heads, d, room), filled(20, heads, room, d_v)
    query, key, value = filled(16, heads * per, d), filled(16, heads, d), filled(16, heads, d_v)
    expected = attention(query, key, value, shared, own, groups, lengths, ages, 0.2)
    before = [x.clone() for x in own]
    groups_of_rows = PromptGroups(groups, lengths)
    kv = KVLayout(shared, own, groups_of_rows, torch.tensor(ages))
    out = attend_compiled(library, query, key, value, kv, 0.2)
    rounding = 2e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), expected, atol=rounding, rtol=rounding)
    for row, age in enumerate(ages):  # written where they belong, and nowhere else
        before[0][row, ..., age], before[1][row, :, age] = key[row], value[row]
    for kept, found in zip(before, own, strict=True):
        assert torch.equal(kept, found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_a_number_stays_so(library, dtype):
    zero = zeros(torch.empty(0, dtype=dtype), 1, 1, 16, 16)
    query = torch.full((1, 2, 16), torch.nan, dtype=dtype)
    key = torch.ones(1, 1, 16, dtype=dtype)
    groups_of_rows, age = PromptGroups([[0]], [3]), torch.tensor([0])
    kv = KVLayout((zero, zero), (zero.clone(), zero.clone()), groups_of_rows, age)
    out = attend_compiled(library, query, key, key, kv, 1.0)
    assert out.isnan().all()
    logits = torch.randn(2, 100).to(dtype)
    logits[1, 70] = torch.nan
    _, _, totals = top_k_compiled(library, logits, 5, torch.float32)
    assert totals[0].isfinite()
    assert totals[1].isnan()
    _, _, totals = top_k_compiled(library, torch.full((1, 100), torch.nan, dtype=dtype), 5, torch.float32)
    assert totals.isnan().all()
    norm = LlamaRMSNorm(24).to(dtype)
    (_, ours), *_ = compiled_norms(norm, library)
    assert ours(torch.full((1, 24), torch.nan, dtype=dtype)).isnan().all()


@pytest.mark.sampled("library", "dtype")
@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("rows", [1, 5, 32, 100])
@pytest.mark.parametrize("sizes", [(64,), (130,), (3,), (96, 32, 32), (40, 41), (300,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(library, dtype, sizes, rows, rank, monkeypatch):
    """Wide and narrow, with biases and without, the second with an adapter or none."""
    monkeypatch.setattr(linear, "LEAST_BLOCKS", 0)
    has_products(library, dtype)
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(shape).to(dtype)

    def parts(at, size):
        adapter = (random(rank, 24) / 5, random(size, rank) / 5) if rank and at < 2 else ()
        return LinearParts(random(size, 24), random(size) if size % 2 == 0 else None, *adapter)

    layers = [parts(at, size) for at, size in enumerate(sizes)]
    product = PackedProduct(layers, library)
    assert product.multiply
    x = random(rows, 48)[:, ::2].unsqueeze(0)
    for out, layer in zip(product.compute(x), layers, strict=True):
        bias = None if layer.bias is None else layer.bias.double()
        expected = nn.functional.linear(x.double(), layer.weight.double(), bias)
        if layer.A is not None:
            expected += (x.double() @ layer.A.double().T).to(dtype).double() @ layer.B.double().T
        if dtype == torch.float32:
            torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
        else:  # sums are in float32: what differs is how the last one is rounded, and the adapter's middle
            torch.testing.assert_close(out.double(), expected, atol=2**-6, rtol=2**-8)


@pytest.mark.sampled("library", "dtype")
@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("size", [(64, 24), (130, 40), (3, 70), (300, 128)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_is_read_in_place(library, dtype, size, rank, monkeypatch):
    """As if it were packed, to the last bit."""
    monkeypatch.setattr(linear, "LEAST_BLOCKS", 0)
    has_products(library, dtype)
    torch.manual_seed(0)
    O, I = size  # noqa: E741
    weight, x = torch.randn(size).to(dtype), torch.randn(9, I).to(dtype)
    adapter = (torch.randn(rank, I).to(dtype), torch.randn(O, rank).to(dtype)) if rank else ()
    layers = [LinearParts(weight, torch.randn(O), *adapter)]
    product = PackedProduct(layers, library, in_place=True)
    assert product.weight.data_ptr() == weight.data_ptr()
    assert torch.equal(product.compute(x)[0], PackedProduct(layers, library).compute(x)[0])
    apart = [LinearParts(torch.randn(I, O).to(dtype).t())]
    assert torch.equal(
        PackedProduct(apart, library, in_place=True).compute(x)[0], PackedProduct(apart, library).compute(x)[0]
    )


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_no_copy_of_a_head(arch, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_BLOCKS", 0)
    has_products(build.compiled())
    model = random_model(arch, torch.float32)
    layer = inference_copy(model).get_output_embeddings()
    assert layer.product.weight.data_ptr() == model.bare_lm.get_output_embeddings().weight.data_ptr()


def test_products_that_are_left_to_onednn(library, monkeypatch):
    has_products(library)
    wide = torch.randn(4 * 64 * torch.get_num_threads(), 4)
    assert PackedProduct([LinearParts(wide)], library).multiply
    assert not PackedProduct([LinearParts(wide[:-1])], library).multiply
    if product_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16:
        product = PackedProduct([LinearParts(wide.bfloat16())], library)
        assert bool(product.multiply) == bool(library.find("multiply", wide.bfloat16()))
        odd = PackedProduct([LinearParts(wide[:, :3].bfloat16())], library)
        assert not odd.multiply
        x = torch.randn(2, 3).bfloat16()
        torch.testing.assert_close(odd.compute(x)[0], nn.functional.linear(x, wide[:, :3].bfloat16()))


def test_no_products_of_bfloat16_where_onednn_has_tiles(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    library = Compiled(build._library(tmp_path))
    assert bool(library.find("multiply", torch.empty(0))) == (HERE == "AVX512")
    assert not library.find("multiply", torch.empty(0, dtype=torch.bfloat16))


def test_types_that_are_not_served(library):
    x, own = torch.ones(1, 1, 16, dtype=torch.float64), zeros(torch.ones(0, dtype=torch.float64), 1, 1, 16, 16)
    groups_of_rows, age = PromptGroups([[0]], [3]), torch.tensor([0])
    assert attend_compiled(library, x, x, x, KVLayout((own, own), (own, own), groups_of_rows, age), 1.0) is None
    assert not own.any()


@pytest.mark.sampled("library", "dtype")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("V", "K"), [(49152, 50), (1000, 50), (41, 41), (130, 1), (70, 64)])
def test_candidates(library, dtype, V, K):
    torch.manual_seed(0)
    logits = (torch.randn(5, V) * 6).to(dtype)
    values, ids, totals = top_k_compiled(library, logits, K, torch.float32)
    order = torch.sort(logits.float(), dim=1, descending=True, stable=True)  # of equals the smaller number first
    assert torch.equal(values, order.values[:, :K])
    assert torch.equal(ids, order.indices[:, :K])
    torch.testing.assert_close(totals.double(), torch.logsumexp(logits.double(), dim=1), atol=4e-6, rtol=0)


@pytest.mark.parametrize(("K", "D"), [(50, 576), (1, 20), (3, 7)])
def test_mixed_candidates(library, K, D):
    torch.manual_seed(0)
    table, ids, weights = torch.randn(300, D).bfloat16(), torch.randint(300, (10, K)), torch.rand(10, K)
    expected = (weights.double().unsqueeze(1) @ table.double()[ids]).squeeze(1)
    found = mix_compiled(library, ids.int(), weights, table)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert mix_compiled(library, ids + 300, weights, table) is None  # nothing is read behind the table
    assert mix_compiled(library, ids, weights.double(), table) is None
    assert mix_compiled(library, ids, weights, table.double()) is None


def test_candidates_without_compiled_code(library):
    logits = torch.randn(5, 300)
    assert top_k_compiled(library, logits.double(), 7, torch.float64) is None
    kernels = DecodingKernels(random_model("llama"), DEFAULT)
    for one, other in zip(
        kernels.top_k(logits, 7, torch.float32), kernels.top_k(logits.double(), 7, torch.float64), strict=True
    ):
        torch.testing.assert_close(one.double(), other.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_norms(library, kind, dtype):
    torch.manual_seed(0)
    norm = kind(72, eps=1e-5).to(dtype)
    with torch.no_grad():
        norm.weight.normal_(mean=1)
    ((found, ours),) = compiled_norms(nn.ModuleList([norm]), library)
    assert found is norm
    x = torch.randn(3, 5, 2, 72).to(dtype).transpose(1, 2)
    with torch.no_grad():
        expected = norm(x)
    out = ours(x)
    if dtype == torch.float32:
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)
    else:  # rounded where transformers rounds: the sums' order shows in next to none
        assert (out == expected).float().mean() > 0.99
        torch.testing.assert_close(out, expected, atol=0, rtol=2**-6)
    assert torch.equal(ours(x.double()), norm(x.double()))  # the model's own for other types


@pytest.mark.parametrize("D", [24, 576])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_norms(library, dtype, D):
    """Of what else reads x, too, or nothing."""
    torch.manual_seed(0)
    x, grad, more = (torch.randn(40, D).to(dtype) for _ in range(3))
    scales = torch.rand(D) + 0.5
    wide = x.double().requires_grad_()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * scales.double()
    normed.backward(grad.double())
    backward = library.find("rms_norm_backward", x)
    for rest in (more, None):
        out = torch.empty_like(x)
        place = None if rest is None else rest.data_ptr()
        backward(x.data_ptr(), grad.data_ptr(), place, scales.data_ptr(), out.data_ptr(), 40, D, 1e-5, 2)
        expected = wide.grad if rest is None else wide.grad + rest.double()
        atol = 1e-5 if dtype == torch.float32 else 2**-8 * expected.abs().max().item()
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=0)


@pytest.mark.sampled("library", "dtype")
@pytest.mark.parametrize("d", [6, 32, 40, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_embeddings(library, dtype, d):
    """As transformers applies them, and back, with any cosines and sines; of rows that stand apart, too."""
    torch.manual_seed(0)
    x, grad = torch.randn(7, 5, d).to(dtype)[:, :3], torch.randn(7, 3, d).to(dtype)
    cosine, sine = (torch.randn(7, d).to(dtype) for _ in range(2))
    function = library.find("rotate", x)

    def rotate(x, cosine, sine):
        out = torch.empty(7, 3, d, dtype=dtype)
        places = (part.data_ptr() for part in (cosine, sine, out))
        function(x.data_ptr(), x.stride(0), *places, 7, 3, d, 2)
        return out

    leaf = x.transpose(0, 1).unsqueeze(0).detach().requires_grad_()  # (1, heads, S, d)
    expected, _ = apply_rotary_pos_emb(leaf, leaf, cosine.unsqueeze(0), sine.unsqueeze(0))
    atol, rtol = (5e-6, 0) if dtype == torch.float32 else (2**-6, 2**-7)
    torch.testing.assert_close(rotate(x, cosine, sine), expected[0].transpose(0, 1), atol=atol, rtol=rtol)
    expected.backward(grad.transpose(0, 1).unsqueeze(0))
    back = rotate(grad, cosine, -sine.roll(d // 2, 1))
    torch.testing.assert_close(back, leaf.grad[0].transpose(0, 1), atol=2 * atol, rtol=rtol)


@pytest.mark.parametrize("width", [3, 40, 1536])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_swiglu(library, dtype, width):
    torch.manual_seed(0)
    gate, up, grad = (4 * torch.randn(20, width).to(dtype) for _ in range(3))
    gates, ups = (x.double().requires_grad_() for x in (gate, up))
    (nn.functional.silu(gates) * ups).backward(grad.double())
    out = torch.empty_like(gate)
    backward = library.find("swiglu_backward", gate)
    backward(*(x.data_ptr() for x in (gate, up, grad, out, grad)), 20, width, 2)
    rtol = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(out.double(), gates.grad, atol=1e-5 if rtol == 1e-5 else 0.05, rtol=rtol)
    torch.testing.assert_close(grad.double(), ups.grad, atol=1e-5 if rtol == 1e-5 else 0.05, rtol=rtol)


def test_norms_that_are_something_else(library):
    class Odd(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x) * 1.01

    assert not list(compiled_norms(nn.ModuleList([nn.LayerNorm(24), nn.Linear(3, 4), Odd(24)]), library))


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", CONFIGS)
def test_blocks_that_look_like_llama(arch, dtype):
    model = random_model(arch, dtype)
    packs_up_to(model)
    copy = inference_copy(model)
    found = [block for block in copy.modules() if isinstance(block, CompiledBlock)]
    assert len(found) == (3 if arch in LIKE_LLAMA else 0)
    assert not any(isinstance(module, (CompiledBlock, CompiledNorm)) for module in model.modules())


def test_blocks_under_autocast_keep_their_own_way():
    """Their norms are float32, their products bfloat16."""
    model = random_model("llama", torch.float32)
    model.autocast = torch.bfloat16
    packs_up_to(model)
    copy = inference_copy(model)
    assert not any(isinstance(module, CompiledBlock) for module in copy.modules())
    assert generate(model, PROMPTS, group_size=2, **SAMPLER).finite()


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block.mlp, "act_fn", nn.GELU()),
        lambda block: block.register_forward_hook(lambda _, inputs, out: out + 0.01 * inputs[0]),
        lambda block: (
            setattr(block.self_attn, "scaling", 2.0) or setattr(block.self_attn, "forward", other_scale(block))
        ),
    ],
    ids=["activation", "residual", "scale"],
)
def test_a_block_that_differs_keeps_its_own_way(change):
    model = random_model("llama", torch.float32)
    change(model.bare_lm.model.layers[1])
    packs_up_to(model)
    copy = inference_copy(model)
    kinds = [type(layer) is CompiledBlock for layer in copy.model.layers]
    assert kinds == [True, False, True]


def other_scale(block):
    """The attention of a block at a scale that is not the one it tells of."""
    forward = type(block.self_attn).forward

    def changed(*arguments, **keywords):
        attention = block.self_attn
        told, attention.scaling = attention.scaling, 0.1
        try:
            return forward(attention, *arguments, **keywords)
        finally:
            attention.scaling = told

    return changed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_compiled_block_is_the_block(dtype):
    """In bfloat16 it rounds where transformers rounds."""
    model = random_model("qwen3", dtype)
    packs_up_to(model)
    copy = inference_copy(model)
    blocks_of = [block for block in copy.modules() if isinstance(block, CompiledBlock)]
    plain = model.bare_lm.model
    x = torch.randn(1, 40, 24).to(dtype)
    embeddings = plain.rotary_emb(x, torch.arange(40).unsqueeze(0))
    for own, replacement in zip(plain.layers, blocks_of, strict=True):
        with torch.no_grad(), packed_block(own), laid_out(like_llama._Mix()):
            expected, found = own(x, position_embeddings=embeddings), replacement(x, position_embeddings=embeddings)
        if dtype == torch.float32:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        else:
            torch.testing.assert_close(found, expected, atol=2**-5, rtol=2**-5)


def other_hidden(module, inputs, out):
    return out * 1.5


def other_positions(module, inputs, options):
    return inputs, options | {"position_embeddings": tuple(-part for part in options["position_embeddings"])}


@pytest.mark.sampled
@pytest.mark.parametrize("changed", ["", "hidden", "positions"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", sorted(LIKE_LLAMA - {"mistral"}))  # whose window is too short
def test_a_step_in_one_call(arch, dtype, changed, monkeypatch):
    """To the bit what several calls give; rows of two prompts and of several ages, one of them gone.

    Where something is changed between two blocks, they are not run together.
    """
    monkeypatch.setattr(linear, "LEAST_BLOCKS", 0)
    model = random_model(arch, dtype)
    has_products(build.compiled(), dtype)

    def steps(whole):
        decoder = make_decoder(CpuAccelerator().decoding(model, DEFAULT), prompts=3, longest_prompt=8, max_new_tokens=4)
        found = [block for block in decoder.lm.modules() if isinstance(block, CompiledBlock)]
        assert len(found) == 3
        if changed == "hidden":
            found[1].register_forward_hook(other_hidden)
        if changed == "positions":
            found[2].register_forward_pre_hook(other_positions, with_kwargs=True)
        for block in found:
            assert block.parts is not None
            block.parts = block.parts if whole else None
        decoder.admit([PROMPTS[0][:3], PROMPTS[1][:5]], 3)
        lines = [len(block.line.members) for block in found if block.leads]
        assert lines == ([] if not whole else [2, 1] if changed else [3])
        torch.manual_seed(0)
        x = torch.randn(9, model.embedding.weight.shape[1]).to(dtype)
        logits = [decoder.step(x[:6]), decoder.step(x[:6] / 2)]
        decoder.keep([5, 0, 1, 2, 4])
        decoder.admit([PROMPTS[0]], 4)
        return [*logits, decoder.step(x), decoder.step(x + 1)]

    for one, other in zip(steps(whole=True), steps(whole=False), strict=True):
        assert torch.equal(one, other)


def test_a_copy_goes_with_its_rollout(monkeypatch):
    """Without waiting for Python's collector of circles: packed weights are as large as the model."""
    monkeypatch.setattr(linear, "LEAST_BLOCKS", 0)
    kernels = CpuAccelerator().decoding(random_model("llama", torch.float32), DEFAULT)
    decoder = make_decoder(kernels, prompts=1, longest_prompt=8, max_new_tokens=4)
    first = decoder.admit([PROMPTS[0]], 2)
    decoder.step(torch.zeros(2, decoder.model.embedding.weight.shape[1]))
    blocks = [weakref.ref(block) for block in decoder.lm.modules() if isinstance(block, CompiledBlock)]
    assert len(blocks) == 3
    gc.disable()
    try:
        del decoder, first
        assert [block() for block in blocks] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("arch", sorted(LIKE_LLAMA))
def test_rollouts_by_own_products(arch, monkeypatch):
    """Of blocks in one call, the last layer's and the gate's, too."""
    model = random_model(arch, torch.float32)
    plain = generate(model, PROMPTS, group_size=2, options=REFERENCE, **SAMPLER)
    monkeypatch.setattr(linear, "LEAST_BLOCKS", 0)
    fast = generate(model, PROMPTS, group_size=2, options=DEFAULT, **SAMPLER)
    assert torch.equal(fast.completion_ids, plain.completion_ids)
    torch.testing.assert_close(fast.sample_logprobs, plain.sample_logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler", "no-such-compiler"),
        ("sh -c 'echo broken >&2; exit 1'", "broken"),
        (
            "sh -c 'echo Included from here: >&2; echo here:1:2: error: broken >&2; exit 1'",
            "error: broken",
        ),
        ('"g++', "CXX: cannot be read as a command (No closing quotation)"),
    ],
    ids=["none", "fails", "fails_elsewhere", "quotation"],
)
def test_without_a_compiler(monkeypatch, tmp_path, caplog, compiler, said):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("HRPO_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "compiled", functools.cache(build.compiled.__wrapped__))
    model = random_model("llama", torch.float32)
    with caplog.at_level(logging.WARNING, "hrpo"):
        rollout = generate(model, PROMPTS, group_size=2, **SAMPLER)
        generate(model, PROMPTS, group_size=2, **SAMPLER)
    assert len(rollout) == 2 * len(PROMPTS)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("decoding and updates run uncompiled, slower: ")
    assert said in line
    assert line.endswith("; install g++, or name another compiler in CXX")
    assert not list((tmp_path / "compiled").glob("*"))  # nothing half-made is left


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HRPO_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "hrpo"):
        assert build.compiled.__wrapped__() is None
    assert "Not a directory" in caplog.text


def test_it_is_made_once(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho made >> {shlex.quote(str(tmp_path / "log"))}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    made = [build._library(tmp_path / "cache") for _ in range(2)]
    assert made[0] == made[1]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [made[0].name]
    assert (tmp_path / "log").read_text() == "made\n"
    assert set(MACHINES) < set(SETS)


@pytest.fixture
def makes_a_copy(monkeypatch, tmp_path):
    """A compiler, in a folder with a space, that gives the library of this machine; return what notes that it did."""
    there, log = build.compiled().path, tmp_path / "log"
    compiler = tmp_path / "a folder" / "compiler"
    compiler.parent.mkdir()
    compiler.write_text(
        f"#!/bin/sh\necho made >> {shlex.quote(str(log))}\n"
        f'for last; do :; done\nhead -c -{build.DIGEST} {shlex.quote(str(there))} > "$last"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{compiler}'")
    return log


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "gone"])
def test_a_damaged_library_is_made_again(makes_a_copy, tmp_path, damage):
    """Loading one that is cut short would end the process."""
    library = build._library(tmp_path / "cache")
    whole = library.read_bytes()
    if damage == "gone":
        library.unlink()
    else:
        library.write_bytes({"cut": whole[:5000], "empty": b"", "changed": whole[:-1] + b"?"}[damage])
    assert build._library(tmp_path / "cache") == library
    assert library.read_bytes() == whole
    assert makes_a_copy.read_text() == "made\nmade\n"
    assert Compiled(library).functions.keys() == build.compiled().functions.keys()


def test_what_a_killed_build_left_goes(makes_a_copy, tmp_path):
    library = build._library(tmp_path / "cache")
    library.unlink()
    library.with_suffix(".draft").write_bytes(b"half of it")
    build._library(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [library.name]


def test_a_failure_of_compiled_blocks_is_told(monkeypatch, caplog):
    """The model's own blocks do the same then; in tests the failure is raised."""

    def broken(self, *args, **options):
        raise TypeError("odd")

    monkeypatch.setattr(CompiledBlock, "forward", broken)
    model = random_model("llama", torch.float32)
    with pytest.raises(TypeError, match="odd"):
        generate(model, PROMPTS, group_size=2, **SAMPLER)
    monkeypatch.setattr(like_llama, "FAILURES_RAISE", False)
    with caplog.at_level(logging.ERROR, "hrpo"):
        rollout = generate(model, PROMPTS, group_size=2, **SAMPLER)
    assert len(rollout) == 2 * len(PROMPTS)
    assert "our own code failed on its blocks, which run as they are; please report it" in caplog.text
