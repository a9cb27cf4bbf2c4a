"""A copy of the language model for decoding: adapters folded in; the original stays as it is."""

import copy
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from hrpo.engine.layers import active_adapters, linear_layers
from hrpo.model import HybridCausalLM


class LinearParts(NamedTuple):
    """What a linear layer is made of: weight (O, I), bias (O,), and factors A (r, I) and B (O, r) of an adapter.

    Their product B @ A, scale included, is added to the weight: here only where it must not be rounded into it.
    """

    weight: Tensor
    bias: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None


def inference_model(model: HybridCausalLM, *, fold: bool) -> Any:
    """Return a copy of the bare language model that computes the same, without gradient.

    It shares all tensors that are not folded. Adapters are added to the weights in float32 and float64; in bfloat16 the
    sum would round small updates away (a weight of 0.02 has steps of 1e-4), so that the adapter stays beside the
    weight. It is made anew for each rollout: merging and unmerging in place would let weights drift.

    Args:
        model: stays untouched.
        fold: whether to fold adapters at all.

    """
    bare = model.bare_lm
    replacements = shared_parts(bare)
    if fold and folds(model):
        layers = (layer for _, layer in linear_layers(bare) if isinstance(layer, LoraLinear))
        replacements |= {id(layer): _folded(layer) for layer in layers}
    return copy.deepcopy(bare, replacements)


def folds(model: HybridCausalLM) -> bool:
    """Whether an adapter's update survives the rounding of the weight that it is added to."""
    return (model.autocast or model.lm_dtype) != torch.bfloat16


def shared_parts(lm: Any) -> dict[int, Any]:
    """Return, by `id`, what copies of a language model share with it: a memo for `copy.deepcopy`."""
    parts: dict[int, Any] = {id(tensor): tensor for tensor in (*lm.parameters(), *lm.buffers())}
    # Quantized layers are subclasses of nn.Linear, and shared whole: their scales are neither parameters nor buffers.
    quantized = (layer for layer in lm.modules() if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear)
    return parts | {id(layer): layer for layer in quantized}


def parts_of(layer: Any, dtype: torch.dtype, *, fold: bool) -> LinearParts:
    """Return what a layer is made of, in a dtype, its adapter folded into the weight or beside it."""
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


def _folded(layer: Any) -> nn.Module:
    """Return a linear layer that has the adapter in its weight."""
    parts = parts_of(layer, layer.base_layer.weight.dtype, fold=True)
    folded = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    folded.weight, folded.bias = nn.Parameter(parts.weight, requires_grad=False), layer.base_layer.bias
    return folded
