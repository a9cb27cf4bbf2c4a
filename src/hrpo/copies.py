"""A copy of the language model for decoding: adapters folded in, weights packed; the model itself stays as it is."""

import copy
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from hrpo.linear import PackedLinear, product_dtype
from hrpo.model import HybridCausalLM
from hrpo.techniques import Techniques


def decoding_copy(model: HybridCausalLM, techniques: Techniques) -> Any:
    """Return a copy of the bare language model that computes the same, faster and without gradient.

    It shares all tensors that are not folded or packed. Adapters are added to the weights in float32 and float64; in
    bfloat16 the sum would round small updates away (a weight of .02 has steps of 1e-4), so that the adapter stays
    beside the weight. It is made anew for each rollout: merging and unmerging in place would let weights drift.

    Args:
        model: stays untouched.
        techniques: which to use.

    """
    bare = model.bare_lm
    dtype = model.autocast or model.lm_dtype
    pack = techniques.packed_weights and product_dtype(dtype, model.device) is not None
    fold = techniques.folded_adapter and dtype != torch.bfloat16
    stand_in: dict[int, Any] = {id(tensor): tensor for tensor in (*bare.parameters(), *bare.buffers())}
    inside: tuple[str, ...] = ()  # prefixes of what an adapted layer is made of
    for name, layer in bare.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(layer, LoraLinear):
            inside += (name + ".",)
            if type(layer.base_layer) is nn.Linear and not layer.lora_variant and (fold or pack):
                stand_in[id(layer)] = _without_adapter(layer, dtype, fold=fold, pack=pack)
        elif type(layer) is nn.Linear and pack:
            stand_in[id(layer)] = _packed(layer.weight, layer.bias, dtype)
    return copy.deepcopy(bare, stand_in)


def _without_adapter(layer: Any, dtype: torch.dtype, *, fold: bool, pack: bool) -> nn.Module:
    base = layer.base_layer
    names = layer.active_adapters
    if fold:
        weight = base.weight + sum(layer.get_delta_weight(name) for name in names).to(base.weight.dtype)
        if pack:
            return _packed(weight, base.bias, dtype)
        folded = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        folded.weight, folded.bias = nn.Parameter(weight, requires_grad=False), base.bias
        return folded
    A = torch.cat([layer.lora_A[name].weight for name in names])  # (r, I)
    B = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in names], dim=1)  # (O, r)
    return _packed(base.weight, base.bias, dtype, (A, B))


def _packed(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, low_rank: tuple[Tensor, Tensor] | None = None
) -> PackedLinear:
    factors = None if low_rank is None else (low_rank[0].to(dtype), low_rank[1].to(dtype))
    return PackedLinear(weight.to(dtype), bias, factors)
