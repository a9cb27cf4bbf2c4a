"""Copies of model and gate for decoding on CPUs: adapters folded in, weights packed; the originals stay as they are."""

import copy
from collections.abc import Collection
from typing import Any

from hrpo.engine.cpu.blocks import CompiledBlock, compiled_blocks
from hrpo.engine.cpu.build import Compiled
from hrpo.engine.cpu.linear import PackedLinear, PackedProduct, product_dtype
from hrpo.engine.cpu.norms import compiled_norms
from hrpo.engine.inference_model import LinearParts, folds, parts_of, shared_parts
from hrpo.engine.layers import linear_layers
from hrpo.gate import HybridGate
from hrpo.model import HybridCausalLM


def packed_model(model: HybridCausalLM, library: Compiled | None, read_together: list[list[str]], *, fold: bool) -> Any:
    """Return a copy of the bare language model with its weights packed; see `hrpo.engine.inference_model`.

    Args:
        model: stays untouched; of a dtype that oneDNN multiplies.
        library: compiled code, to use what it has.
        read_together: names of linear layers that read the same tensor, which become one product.
        fold: whether to fold adapters at all.

    """
    bare, dtype = model.bare_lm, model.autocast or model.lm_dtype
    fold = fold and folds(model)
    replacements = shared_parts(bare)
    if library:
        replacements |= {id(norm): compiled for norm, compiled in compiled_norms(bare, library)}
    layers = dict(linear_layers(bare))
    together = [names for names in read_together if layers.keys() >= set(names)]
    grouped = {name for names in together for name in names}
    head = bare.get_output_embeddings()  # as large as a fourth of a small model, and often the embedding, too
    for names in [*together, *([name] for name in layers if name not in grouped)]:
        parts = [parts_of(layers[name], dtype, fold=fold) for name in names]
        in_place = layers[names[0]] is head and parts[0].weight is getattr(head, "base_layer", head).weight
        product = PackedProduct(parts, library, in_place=in_place)
        for index, name in enumerate(names):
            replacements[id(layers[name])] = PackedLinear(product, index, layers[name].in_features)
    return copy.deepcopy(bare, replacements)


def with_compiled_blocks(lm: Any, library: Compiled, known: Collection[str] | None) -> dict[str, CompiledBlock]:
    """Replace blocks of a packed copy by compiled ones, in place; return them by name.

    Args:
        lm: the copy.
        library: compiled code.
        known: names of the blocks that can be replaced, where that has been tried.

    """
    replacements = compiled_blocks(lm, library, known)
    for name, block in replacements.items():
        lm.set_submodule(name, block)
    return replacements


def packed_gate(gate: HybridGate, library: Compiled | None) -> HybridGate:
    """Return a copy of the gate that computes the same, faster and without gradient; itself where nothing is faster."""
    linears = (gate.reset_gate, gate.input_gate)
    if product_dtype(gate.Lambda.dtype, gate.Lambda.device) is None:
        return gate
    product = PackedProduct([LinearParts(layer.weight, layer.bias) for layer in linears], library)
    replacements: dict[int, Any] = {id(parameter): parameter for parameter in gate.parameters()}
    replacements |= {id(layer): PackedLinear(product, at, layer.in_features) for at, layer in enumerate(linears)}
    return copy.deepcopy(gate, replacements)
