"""Copies of model and gate for decoding: adapters folded in, weights packed; the originals stay as they are."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from hrpo.engine.cpu.blocks import compiled_blocks
from hrpo.engine.cpu.build import Compiled
from hrpo.engine.cpu.linear import LinearParts, PackedLinear, PackedProduct, product_dtype
from hrpo.engine.cpu.norms import compiled_norms
from hrpo.engine.options import Techniques
from hrpo.gate import HybridGate
from hrpo.model import HybridCausalLM


def decoding_copy(model: HybridCausalLM, techniques: Techniques, library: Compiled | None) -> Any:
    """Return a copy of the bare language model that computes the same, faster and without gradient.

    It shares all tensors that are not folded or packed. Adapters are added to the weights in float32 and float64; in
    bfloat16 the sum would round small updates away (a weight of .02 has steps of 1e-4), so that the adapter stays
    beside the weight. It is made anew for each rollout: merging and unmerging in place would let weights drift.

    Args:
        model: stays untouched.
        techniques: which to use.
        library: compiled code, to use what it has.

    """
    bare = model.bare_lm
    dtype = model.autocast or model.lm_dtype
    pack = techniques.packed_weights and product_dtype(dtype, model.device) is not None
    fold = techniques.folded_adapter and dtype != torch.bfloat16
    stand_ins: dict[int, Any] = {id(tensor): tensor for tensor in (*bare.parameters(), *bare.buffers())}
    # Quantized layers are subclasses of nn.Linear, and shared whole: their scales are neither parameters nor buffers.
    stand_ins |= {
        id(layer): layer for layer in bare.modules() if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear
    }
    if library:
        stand_ins |= {id(norm): compiled for norm, compiled in compiled_norms(bare, library)}
    layers = {name: layer for name, layer in linear_layers(bare) if pack or (fold and isinstance(layer, LoraLinear))}
    if not pack:
        stand_ins |= {id(layer): _folded(layer) for layer in layers.values()}
        return copy.deepcopy(bare, stand_ins)
    together = [names for names in model.read_together if layers.keys() >= set(names)]
    grouped = {name for names in together for name in names}
    head = bare.get_output_embeddings()  # as large as a fourth of a small model, and often the embedding, too
    for names in [*together, *([name] for name in layers if name not in grouped)]:
        parts = [_parts(layers[name], dtype, fold=fold) for name in names]
        in_place = layers[names[0]] is head and parts[0].weight is getattr(head, "base_layer", head).weight
        product = PackedProduct(parts, library, in_place=in_place)
        for index, name in enumerate(names):
            stand_ins[id(layers[name])] = PackedLinear(product, index, layers[name].in_features)
    lm = copy.deepcopy(bare, stand_ins)
    if library:
        twins = compiled_blocks(lm, library, model.compiled_blocks)
        model.compiled_blocks = list(twins) or None
        for name, twin in twins.items():
            lm.set_submodule(name, twin)
    return lm


def decoding_gate(model: HybridCausalLM, techniques: Techniques, library: Compiled | None) -> HybridGate:
    """Return a copy of the gate that computes the same, faster and without gradient; itself where nothing is faster."""
    gate = model.gate
    linears = (gate.reset_gate, gate.input_gate)
    if not techniques.packed_weights or product_dtype(gate.Lambda.dtype, model.device) is None:
        return gate
    product = PackedProduct([LinearParts(layer.weight, layer.bias) for layer in linears], library)
    stand_ins: dict[int, Any] = {id(parameter): parameter for parameter in gate.parameters()}
    stand_ins |= {id(layer): PackedLinear(product, at, layer.in_features) for at, layer in enumerate(linears)}
    return copy.deepcopy(gate, stand_ins)


def linear_layers(lm: Any) -> Iterator[tuple[str, Any]]:
    """Yield the linear layers of a model, adapted or not, that a copy can replace."""
    inside = None  # prefix of what the last adapted layer is made of, which comes right after it
    for name, layer in lm.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(layer, LoraLayer):
            inside = name + "."
            plain = isinstance(layer, LoraLinear) and not layer.lora_variant and not any(layer.lora_bias.values())
            if plain and type(layer.base_layer) is nn.Linear:
                yield name, layer
        elif type(layer) is nn.Linear:
            yield name, layer


def active_adapters(layer: Any) -> list[str]:
    """Return the names of the adapters that an adapted layer adds; some that are active may be of other layers."""
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _folded(layer: Any) -> nn.Module:
    """Return a linear layer that has the adapter in its weight."""
    parts = _parts(layer, layer.base_layer.weight.dtype, fold=True)
    folded = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    folded.weight, folded.bias = nn.Parameter(parts.weight, requires_grad=False), layer.base_layer.bias
    return folded


def _parts(layer: Any, dtype: torch.dtype, *, fold: bool) -> LinearParts:
    """Return what a layer is made of, its adapter folded into the weight or beside it."""
    if isinstance(layer, nn.Linear):
        return LinearParts(layer.weight.to(dtype), layer.bias)
    base, names = layer.base_layer, active_adapters(layer)
    if not names:
        return LinearParts(base.weight.to(dtype), base.bias)
    A = torch.cat([layer.lora_A[name].weight for name in names])  # (r, I)
    B = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in names], dim=1)  # (O, r)
    if fold:
        wide = torch.promote_types(base.weight.dtype, B.dtype)
        return LinearParts(torch.addmm(base.weight.to(wide), B.to(wide), A.to(wide)).to(dtype), base.bias)
    return LinearParts(base.weight.to(dtype), base.bias, A.to(dtype), B.to(dtype))
