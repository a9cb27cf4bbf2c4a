"""Blocks of Llama's layout for decoding on CUDA: some 29 kernels with adapters where the model's own has 93.

A block that looks like one is tried beside its replacement, and keeps its own way where they differ.
"""

import contextlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrpo.engine.attention import Layout, layout_in_use
from hrpo.engine.cuda.linear import JoinedProduct, product_of
from hrpo.engine.like_llama import NotLikeLlamaError, alike


class Rotary:
    """Cosines and sines of a step, made ready once for all blocks.

    Rotating x is x * cos + roll(x) * sin, where the first half of the sines has its sign turned: three kernels.
    """

    def __init__(self) -> None:
        self.given: tuple[Tensor, Tensor] | None = None

    def of(self, embeddings: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(1, n, d) each -> (n, 1, d) each."""
        if self.given is not embeddings:
            cosine, sine = (part[0].unsqueeze(1).to(dtype) for part in embeddings)
            half = sine.shape[2] // 2
            self.ready = cosine, torch.cat([-sine[..., :half], sine[..., half:]], dim=2)
            self.given = embeddings
        return self.ready


class DecodingBlock(nn.Module):
    """A block for decoding only, which keeps no gradient.

    Args:
        block: the model's own, its linear layers already those of a decoding copy.
        rotary: shared by all blocks.

    Raises:
        NotLikeLlamaError: it lacks a part, or has it in another form.

    """

    def __init__(self, block: Any, rotary: Rotary) -> None:
        super().__init__()
        try:
            attention, mlp = block.self_attn, block.mlp
            self.first_norm, self.second_norm = block.input_layernorm, block.post_attention_layernorm
            self.inward = _product(attention.q_proj, attention.k_proj, attention.v_proj)
            self.outward, self.down = _product(attention.o_proj), _product(mlp.down_proj)
            self.gate_and_up = _product(mlp.gate_proj, mlp.up_proj)
            self.layer, self.d, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
            self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
            norms = [norm for norm in (self.first_norm, self.second_norm, self.q_norm, self.k_norm) if norm is not None]
            self.eps = {norm: float(norm.variance_epsilon) for norm in norms}
        except AttributeError as error:
            raise NotLikeLlamaError(str(error)) from error
        self.layout: Layout | None = None  # see `bind_layout`
        self.rotary, self.dtype, self.width = rotary, self.inward.dtype, self.inward.in_features
        products = (self.inward, self.outward, self.gate_and_up, self.down)
        if any(part.dtype != self.dtype for part in products) or any(norm.weight.dtype != self.dtype for norm in norms):
            raise NotLikeLlamaError("it computes in several types")

    def forward(self, hidden: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any) -> Tensor:
        """(1, S, D), cosines and sines (1, S, d) -> (1, S, D)."""
        x, d, (q_width, k_width, _v) = hidden[0], self.d, self.inward.sizes
        heads = [q_width // d, k_width // d]
        cosine, sine = self.rotary.of(position_embeddings, self.dtype)
        out = self.inward.compute(self.norm(self.first_norm, x))  # (S, (H + H_kv + H_kv) * d)
        both, value = (part.view(len(x), -1, d) for part in out.tensor_split([q_width + k_width], dim=1))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = torch.split(both, heads, dim=1)
            both = torch.cat([self.norm(self.q_norm, query), self.norm(self.k_norm, key)], dim=1)
        both = torch.addcmul(both * cosine, both.roll(d // 2, 2), sine)
        query, key = torch.split(both, heads, dim=1)
        attended = (self.layout or layout_in_use()).attend(self.layer, query, key, value, self.scale)  # (S, H, d)
        x = self.outward.compute(attended.flatten(1), x)
        gate, up = torch.split(self.gate_and_up.compute(self.norm(self.second_norm, x)), self.gate_and_up.sizes, dim=1)
        return self.down.compute(F.silu(gate).mul_(up), x).unsqueeze(0)

    def norm(self, norm: Any, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.rms_norm(x, norm.weight.shape, norm.weight, self.eps[norm])


def decoding_blocks(lm: Any, known: Collection[str] | None) -> dict[str, DecodingBlock]:
    """Return, by name, what may stand in for blocks of a decoding copy.

    Args:
        lm: the copy.
        known: names of the blocks for which it may, where that has been tried.

    """
    replacements, shared = {}, Rotary()
    rotary = getattr(lm.base_model, "rotary_emb", None)
    for name, block in lm.named_modules():
        if name.rpartition(".")[2].isdigit() and (known is None or name in known):
            with contextlib.suppress(NotLikeLlamaError):
                replacement = DecodingBlock(block, shared)
                if known is not None or alike(block, replacement, rotary):
                    replacements[name] = replacement
    return replacements


def _product(*layers: nn.Module) -> JoinedProduct:
    product = product_of(*layers)
    if product is None:
        raise NotLikeLlamaError("its linear layers read other tensors")
    return product
