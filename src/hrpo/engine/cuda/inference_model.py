"""A copy of the language model for decoding on CUDA, that takes the model's weights again and again."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hrpo.engine.cuda.blocks import decoding_blocks
from hrpo.engine.cuda.linear import JoinedLinear, JoinedProduct
from hrpo.engine.inference_model import folds, parts_of, shared_parts
from hrpo.engine.layers import active_adapters, linear_layers
from hrpo.model import HybridCausalLM


class InferenceModel:
    """A copy of the bare language model that computes the same, faster and without gradient.

    What reads the same tensor is joined, adapters are folded into weights or stand in the same product, and blocks of
    Llama's layout are run with fewer kernels. Full weights under autocast are copied in its dtype.

    Args:
        model: stays untouched.
        read_together: names of linear layers that read the same tensor, which become one product.
        fold: whether to fold adapters at all.

    """

    def __init__(self, model: HybridCausalLM, read_together: list[list[str]], *, fold: bool) -> None:
        self.dtype, self.fold = model.autocast or model.lm_dtype, fold and folds(model)
        self.made_of = signature(model)
        bare = model.bare_lm
        layers = dict(linear_layers(bare))
        together = [names for names in read_together if layers.keys() >= set(names)]
        grouped = {name for names in together for name in names}
        self.products: list[tuple[list[str], JoinedProduct]] = []
        replacements = shared_parts(bare)
        self.cast: list[tuple[Tensor, Tensor]] = []  # other weights, and their copies in the dtype
        if model.autocast:
            joined = {id(p) for name in layers for p in layers[name].parameters()}
            for p in bare.parameters():
                if id(p) not in joined and p is not bare.get_input_embeddings().weight:
                    replacements[id(p)] = nn.Parameter(p.detach().to(self.dtype), requires_grad=False)
                    self.cast.append((p, replacements[id(p)]))
        for names in [*together, *([name] for name in layers if name not in grouped)]:
            product = JoinedProduct([parts_of(layers[name], self.dtype, fold=self.fold) for name in names])
            self.products.append((names, product))
            for index, name in enumerate(names):
                replacements[id(layers[name])] = JoinedLinear(product, index)
        self.lm: Any = copy.deepcopy(bare, replacements)

    def use_blocks(self, known: list[str] | None) -> list[str]:
        """Run the blocks that allow it with fewer kernels; return their names. `known`: which do, where tried."""
        found = decoding_blocks(self.lm, known)
        for name, block in found.items():
            self.lm.set_submodule(name, block)
        return list(found)

    @torch.no_grad()
    def load(self, model: HybridCausalLM) -> None:
        """Take the model's weights as they are now."""
        layers = dict(linear_layers(model.bare_lm))
        for names, product in self.products:
            product.load([parts_of(layers[name], self.dtype, fold=self.fold) for name in names])
        for own, cast in self.cast:
            cast.copy_(own)


def signature(model: HybridCausalLM) -> tuple[Any, ...]:
    """Return what has to be the same for a copy to take the model's weights again."""
    adapters = [tuple(active_adapters(layer)) for _, layer in linear_layers(model.bare_lm) if hasattr(layer, "lora_A")]
    return (*(p.data_ptr() for p in model.bare_lm.parameters()), model.autocast, model.device, *adapters)
