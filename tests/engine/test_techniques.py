"""Every technique on and off gives the same numbers, on every architecture; what cannot run packed says so once."""

import dataclasses
import logging
import subprocess
import sys

import pytest
import torch
from engines import ARCHS, WINDOW, G, adapted, same, same_rollouts
from models import CONFIGS, PROMPTS, SAMPLER, inference_copy, random_lm, random_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from hrpo import HybridCausalLM, generate, hrpo_loss, replay
from hrpo.engine import packing
from hrpo.engine.cpu import packed_attention
from hrpo.engine.cpu.accelerator import CpuAccelerator
from hrpo.engine.cpu.adapters import PRODUCTS
from hrpo.engine.cpu.build import compiled
from hrpo.engine.cpu.kernels import _PackedAttention
from hrpo.engine.cpu.linear import LinearParts, OneDNN, PackedLinear, PackedProduct, product_dtype
from hrpo.engine.head import head_logprobs
from hrpo.engine.interface import DEFAULT, REFERENCE
from hrpo.engine.packing_probe import packs_up_to, read_together

NAMES = ("packed", "compact", "folded_adapter", "chunked_head")  # what is on by default
CPU = torch.device("cpu")


def one_off():
    """All that makes it fast but one thing: of the engine, or of the CPU's accelerator."""
    changes = {f"no {name}": {name: False} for name in NAMES}
    for field in dataclasses.fields(CpuAccelerator):
        changes[f"no {field.name}"] = {"accelerator": CpuAccelerator(**{field.name: False})}
    changes["no accelerator"] = {"accelerator": "torch"}
    return [pytest.param(dataclasses.replace(DEFAULT, **change), id=name) for name, change in changes.items()]


@pytest.mark.sampled
@pytest.mark.parametrize("techniques", [*one_off(), pytest.param(REFERENCE, id="plain")])
@pytest.mark.parametrize("arch", ARCHS)
def test_each_technique_changes_nothing(arch, techniques):
    model = adapted(arch)
    fast = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, options=techniques, **SAMPLER)
    same_rollouts(fast, rollout, 1e-8)
    with torch.no_grad():
        for one, other in zip(replay(model, fast), replay(model, fast, options=techniques), strict=True):
            same(one, other, 1e-8)


@pytest.mark.sampled
@pytest.mark.parametrize("techniques", [*one_off(), pytest.param(REFERENCE, id="plain")])
@pytest.mark.parametrize("arch", ARCHS)
def test_each_technique_in_float32(arch, techniques):
    """Only float32 has packed weights. The same tokens are fed: at an edge a rounding may choose another one."""
    model = adapted(arch, torch.float32)
    fast = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    forced = {**SAMPLER, "forced_ids": fast.completion_ids}
    same_rollouts(fast, generate(model, PROMPTS, group_size=G, options=techniques, **forced), 1e-4)
    with torch.no_grad():
        for one, other in zip(replay(model, fast), replay(model, fast, options=techniques), strict=True):
            same(one, other, 1e-4)


@pytest.mark.sampled
@pytest.mark.parametrize("policy", ["model", "sampler"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_of_the_packed_update_equal_those_of_the_plain_one(arch, lora, policy):
    model = adapted(arch) if lora else random_model(arch)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    advantages = torch.linspace(-1, 1, len(rollout), dtype=torch.float64)

    def gradients(techniques):
        model.zero_grad()
        logprobs, reference = replay(model, rollout, policy=policy, options=techniques)
        loss, _ = hrpo_loss(logprobs, reference, advantages, rollout.completion_mask, beta=0.1)
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain, fast = gradients(REFERENCE), gradients(DEFAULT)
    assert plain.keys() == fast.keys()
    for name, gradient in plain.items():
        assert (fast[name] - gradient).norm() <= 1e-5 * max(gradient.norm().item(), 1e-3), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral"])
def test_compiled_attention_in_updates(arch, recompute, monkeypatch):
    """Log-probabilities and gradients with it and without, in float32; heads of 16 numbers, which it serves."""
    config, like = CONFIGS[arch](), random_model(arch)
    config.head_dim = 16
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    model = HybridCausalLM(get_peft_model(random_lm(config, torch.float32), lora), like.gate, like.settings)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)
    calls, apply = [], packed_attention.PackedAttention.apply
    monkeypatch.setattr(packed_attention.PackedAttention, "apply", lambda *args: calls.append(1) or apply(*args))

    def run():
        model.zero_grad()
        logprobs, _ = replay(model, rollout, recompute=recompute)
        (logprobs**2).sum().backward()
        return logprobs, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    actual, others = run()
    assert bool(calls) == (arch not in WINDOW)  # those take the plain path
    monkeypatch.setattr(packed_attention, "serves", lambda *_: False)
    count = len(calls)
    expected, gradients = run()
    assert len(calls) == count
    same(actual, expected, 1e-5)
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= 1e-5 * max(gradient.norm().item(), 1e-2), name


@pytest.mark.parametrize(
    ("dtype", "d", "width", "precision"),
    [
        (torch.float64, 8, 8, 1e-12),
        (torch.float64, 8, 4, 1e-12),
        (torch.float32, 8, 8, 2e-6),
        (torch.float32, 16, 16, 2e-6),
        (torch.float32, 80, 80, 2e-6),
        (torch.bfloat16, 32, 32, 1 / 128),
    ],
)
@pytest.mark.parametrize(
    ("prompts", "lengths"),
    [((5, 3), [4, 1, 3, 2]), ((5, 3), [1, 1, 1, 1]), ((70, 130), [66, 1, 140, 65])],
    ids=["completions", "nothing_fed", "more_than_a_block"],
)
def test_packed_attention_is_that_of_each_sequence(prompts, lengths, dtype, d, width, precision, monkeypatch):
    """Outputs and gradients, beside the causal attention of one sequence after the other in float64."""
    places, steps = torch.arange(max(prompts)).flip(0), torch.arange(max(lengths))
    masks = (places < torch.tensor(prompts).unsqueeze(1), steps < torch.tensor(lengths).unsqueeze(1))
    layout = packing.PackedGroups(masks[0].long(), masks[1].long(), 2, _PackedAttention(compiled()))
    S = len(layout.positions)
    generator = torch.Generator().manual_seed(0)
    shapes = [(S, 6, d), (S, 2, d), (S, 2, width)]
    tensors = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    toward = torch.randn(S, 6, width, generator=generator).to(dtype)
    calls, apply = [], packed_attention.PackedAttention.apply
    monkeypatch.setattr(packed_attention.PackedAttention, "apply", lambda *args: calls.append(1) or apply(*args))
    out = layout.attend(0, *tensors, 0.3)
    assert bool(calls) == (d % 16 == 0 and compiled() is not None)

    exact = [x.detach().double().requires_grad_() for x in tensors]
    starts, completions = torch.split(torch.arange(S), [sum(prompts), S - sum(prompts)])
    own = list(torch.split(completions, [n - 1 for n in lengths]))
    expected = torch.zeros(S, 6, width, dtype=torch.float64)
    for b, prompt in enumerate(torch.split(starts, prompts)):
        for places in (prompt, *(torch.cat([prompt, own[2 * b + g]]) for g in range(2))):
            q, k, v = (x[places].transpose(0, 1) for x in exact)
            k, v = (x.repeat_interleave(3, dim=0) for x in (k, v))
            scores = (q @ k.transpose(1, 2) * 0.3).masked_fill(torch.ones(len(places), len(places)).triu(1) > 0, -1e9)
            expected = expected.index_copy(0, places, (scores.softmax(dim=2) @ v).transpose(0, 1))
    gradients = torch.autograd.grad(out, tensors, toward)
    others = torch.autograd.grad(expected, exact, toward.double())
    for one, other in zip((out, *gradients), (expected, *others), strict=True):
        same(one.double(), other, precision * other.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_adapters_are_those_of_peft(dtype):
    """Their outputs and gradients, to the rounding of the layer's dtype."""
    lm = get_peft_model(random_lm("llama", dtype), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    layer = lm.base_model.model.model.layers[0].mlp.up_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        B.normal_(std=0.3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, layer.in_features, generator=generator).to(dtype).requires_grad_()
    toward = torch.randn(3, 5, layer.out_features, generator=generator).to(dtype)

    def run():
        out = layer(x)
        return out, *torch.autograd.grad(out, (x, A, B), toward)

    expected = run()
    with PRODUCTS.fused(lm.base_model.model):
        assert "forward" in vars(layer) or product_dtype(dtype, CPU) != dtype
        actual = run()
        with lm.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))
    assert "forward" not in vars(layer)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= (1e-5 if dtype == torch.float32 else 0.01) * other.norm()


def fused(lm) -> set[str]:
    with PRODUCTS.fused(lm):
        return {name for name, layer in lm.named_modules() if "forward" in vars(layer)}


def test_adapters_that_are_not_simple_stay_with_peft():
    def adapters(**options):
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["up_proj"], **options)
        return get_peft_model(random_lm("llama", torch.float32), config)

    lm = adapters()
    names = fused(lm)
    assert names
    assert all(name.endswith("up_proj") for name in names)
    lm.merge_adapter()
    assert fused(lm) == set()
    lm.unmerge_adapter()
    lm.add_adapter("second", lm.peft_config["default"])
    lm.base_model.set_adapter(["default", "second"])
    assert fused(lm) == set()
    dropping = adapters(lora_dropout=0.5)
    assert fused(dropping.eval()) == names
    assert fused(dropping.train()) == set()
    trained = adapters()
    for layer in trained.modules():
        if hasattr(layer, "base_layer"):
            layer.base_layer.requires_grad_(True)
    assert fused(trained) == set()


@pytest.mark.sampled
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("arch", ARCHS)
def test_recomputed_blocks_give_the_same_gradients(arch, lora):
    model = adapted(arch) if lora else random_model(arch)
    names = [name for name, _ in model.named_modules()]
    rollout = generate(model, PROMPTS, group_size=G, seed=3, **SAMPLER)

    def gradients(recompute):
        model.zero_grad()
        logprobs, _ = replay(model, rollout, recompute=recompute)
        assert [name for name, _ in model.named_modules()] == names
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            replay(model, rollout, with_reference=False, recompute=recompute)
        (logprobs**2).sum().backward()
        size = sum(x.numel() for x in {id(x): x for x in kept}.values())
        return size, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    (size, expected), (less, actual), (some, others) = gradients(False), gradients(True), gradients(0.5)
    for name, gradient in expected.items():
        same(actual[name], gradient, 1e-10)
        same(others[name], gradient, 1e-10)
    if arch in WINDOW:  # the plain path keeps everything
        assert less == some == size
    else:
        assert less < 0.6 * size
        assert less < some < size


@pytest.mark.parametrize("arch", ARCHS)
def test_which_path_serves_whom(arch, caplog):
    model = random_model(arch)
    with caplog.at_level(logging.WARNING, "hrpo"):
        for _ in range(2):
            generate(model, PROMPTS, **SAMPLER)
    if arch in WINDOW:
        assert packs_up_to(model) == WINDOW[arch]
        (record,) = caplog.records  # once
        assert f"sequences above {WINDOW[arch]} tokens take the plain path" in record.getMessage()
    else:
        assert packs_up_to(model) > 10**6
        assert not caplog.records


def test_an_unknown_attention_takes_the_plain_path(caplog):
    model = random_model("llama")
    for layer in model.lm.model.layers:
        attend = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, attend=attend, **options: attend(*args, softcap=30.0, **options)
    with caplog.at_level(logging.WARNING, "hrpo"):
        assert packs_up_to(model) == 0
    assert "it takes the plain path: its attention takes softcap" in caplog.text


def test_a_wrong_packed_answer_is_noticed(caplog):
    """A model that looks at absolute places in its row, not at positions, gets other logits when packed."""
    model = random_model("llama")
    blocks = model.lm.model.forward

    def shifted(*args, inputs_embeds, **options):
        ramp = torch.arange(inputs_embeds.shape[1], dtype=inputs_embeds.dtype).view(1, -1, 1)
        return blocks(*args, inputs_embeds=inputs_embeds + ramp, **options)

    model.lm.model.forward = shifted
    with caplog.at_level(logging.WARNING, "hrpo"):
        assert packs_up_to(model) == 0
    assert "packed logits differ" in caplog.text


@pytest.mark.parametrize("compact", [True, False])
def test_waiting_prompts_take_free_rows(compact):
    model = random_model("llama")
    prompts = [[7 + n, *range(8, 8 + n % 5)] for n in range(9)]
    together = generate(model, prompts, group_size=G, seed=3, **SAMPLER)
    for rows in (1, 2 * G, 3 * G + 1):
        finished = []
        some = generate(
            model,
            prompts,
            group_size=G,
            seed=3,
            max_rows=rows,
            on_finished=finished.append,
            options=dataclasses.replace(DEFAULT, compact=compact),
            **SAMPLER,
        )
        same_rollouts(together, some, 1e-8)
        assert sum(finished) == len(together)


def test_the_copy_leaves_the_model_alone():
    model = adapted("llama", torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention = model.bare_lm.config._attn_implementation
    copies = [inference_copy(model) for _ in range(2)]
    generate(model, PROMPTS, **SAMPLER)
    assert model.bare_lm.config._attn_implementation == attention
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for copied in copies:
        kinds = {type(layer) for layer in copied.modules()}
        assert PackedLinear in kinds
        assert torch.nn.Linear not in kinds  # no adapter, no unpacked layer is left
        assert copied.get_input_embeddings().weight is model.embedding.weight  # shared, not copied


def test_bfloat16_keeps_small_updates_beside_the_weight():
    """A weight of 1 has steps of 1/128 in bfloat16: an update of 1/1000 would vanish in it, and in its output.

    So the input is 1 and -1, where the weight cancels and the update is on the first of the two alone.
    """
    lm = random_lm("llama", torch.bfloat16)
    lm = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    model = HybridCausalLM(lm, random_model("llama").gate, random_model("llama").settings)
    layer = model.bare_lm.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.base_layer.weight.fill_(1)
        layer.lora_A["default"].weight.zero_()[:, 0] = 0.25
        layer.lora_B["default"].weight.fill_(0.001 / layer.scaling["default"])
        x = torch.zeros(3, layer.in_features, dtype=torch.bfloat16)
        x[:, 0], x[:, 1] = 1, -1
        expected, without = layer(x), layer.base_layer(x)
        out = inference_copy(model).model.layers[0].self_attn.q_proj(x)
    assert not without.any()
    same(expected.float(), torch.full((3, layer.out_features), 0.001), 1e-5)
    same(out.float(), expected.float(), 1e-5)


# ---- the head -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("temperature", "candidates"), [(1.0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize("tile", [(1, 4), (3, 100), (100, 1), (100, 100), None])
def test_head_logprobs(frozen, bias, temperature, candidates, tile):
    generator = torch.Generator().manual_seed(0)
    n, D, V = 7, 5, 11

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    near = torch.stack([torch.randperm(V, generator=generator)[:4] for _ in range(n)])
    tokens = near[:, 1]
    inputs = [draw(n, D).requires_grad_(), draw(V, D).requires_grad_(not frozen), draw(V) if bias else None]
    if bias:
        inputs[2].requires_grad_(not frozen)
    logits = F.linear(*inputs) / temperature
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    expected = chosen - (logits.gather(1, near) if candidates else logits).logsumexp(1)
    grad = draw(n)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    gradients = torch.autograd.grad(expected, wanted, grad)
    actual = head_logprobs(*inputs, tokens, temperature=temperature, candidates=near if candidates else None, tile=tile)
    same(actual, expected, 1e-12)
    for one, other in zip(torch.autograd.grad(actual, wanted, grad), gradients, strict=True):
        same(one, other, 1e-12)


# ---- oneDNN -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_products_of_ever_other_sizes_keep_little():
    code = """
import torch
from hrpo.engine.cpu.linear import onednn_linear
from hrpo.common.memory import peak_memory
x, weight = torch.randn(400, 64), torch.randn(32, 64)
onednn_linear(x, weight)
before = peak_memory(x.device)
for rows in range(1, 400):
    onednn_linear(x[:rows], weight)
print(peak_memory(x.device) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80e6  # by default 240 MB


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-6), (torch.bfloat16, 1 / 128)])
def test_packed_linear(dtype, precision, bias, low_rank):
    torch.manual_seed(0)
    weight, offset, x = torch.randn(20, 12), torch.randn(20), torch.randn(2, 5, 12)
    A, B = torch.randn(3, 12), torch.randn(20, 3)
    weight, offset, x, A, B = (tensor.to(dtype) for tensor in (weight, offset, x, A, B))
    other = torch.randn(7, 12).to(dtype)
    expected = F.linear(x.float(), weight.float(), offset.float() if bias else None)
    if low_rank:
        expected += F.linear(F.linear(x.float(), A.float()), B.float())
    atol = 2 * precision * expected.abs().max().item()
    first = LinearParts(weight, offset if bias else None, *((A, B) if low_rank else ()))
    for layers in ([first], [LinearParts(other), first]):
        product = PackedProduct(layers)
        wanted = [F.linear(x.float(), other.float()), expected][-len(layers) :]
        for _ in range(2):  # reading in any order, once or again
            for index in (*reversed(range(len(layers))), 0):
                out = PackedLinear(product, index, 12)(x)
                assert out.dtype == dtype
                same(out.float(), wanted[index], atol)
        zero = product.read(0 * x, 0)  # another input
        same(
            zero.float(),
            (offset if bias and len(layers) == 1 else torch.zeros_like(zero)).float().expand_as(zero),
            atol,
        )


def test_layers_that_read_the_same_are_found():
    model = adapted("llama", torch.float32)
    packs_up_to(model)
    prefix = "model.layers.1."
    found = [names for names in read_together(model) if names[0].startswith(prefix)]
    attention = [prefix + f"self_attn.{name}_proj" for name in "qkv"]
    assert found == [attention, [prefix + f"mlp.{name}_proj" for name in ("gate", "up")]]
    copy = inference_copy(model, compiled=False)  # compiled blocks keep no layers
    products = {name: layer.product for name, layer in copy.named_modules() if name in attention}
    assert len(products) == 3
    assert len({id(product) for product in products.values()}) == 1
    model = adapted("gpt_neox", torch.float32)  # reads once for attention, once for the MLP, from two norms
    packs_up_to(model)
    assert read_together(model) == []


def test_products_through_onednn_have_gradients():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(12, 20), torch.randn(2, 5, 12, requires_grad=True)
    grad = torch.randn(2, 5, 20)
    wanted = [x, layer.weight, layer.bias]
    expected = torch.autograd.grad(layer(x), wanted, grad)
    with OneDNN():
        out = layer(x)
    assert type(out.grad_fn).__name__ == "_OneDNNLinearBackward"
    same(out, layer(x), 1e-5)
    for one, other in zip(torch.autograd.grad(out, wanted, grad), expected, strict=True):
        same(one, other, 1e-4)


def test_onednn_serves_the_types_it_has():
    assert product_dtype(torch.float32, CPU) == torch.float32
    assert product_dtype(torch.bfloat16, CPU) in (torch.bfloat16, torch.float32)  # as the CPU has instructions for it
    assert product_dtype(torch.float64, CPU) is None
    assert product_dtype(torch.float32, torch.device("meta")) is None
