"""The linear layers of a transformers model, with adapters or without."""

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn


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
