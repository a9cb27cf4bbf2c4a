"""How wide a model is, and how many numbers its parts hold, from its config alone."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Shape:
    """How wide a model is, and how many numbers its parts hold.

    Args:
        hidden: the size of a hidden state, D.
        blocks: how many there are, L.
        vocabulary: its size, V.
        heads: the size of all attention heads together.
        kv: the size of a position's keys, and of its values.
        inner: the size in the middle of a block's feed-forward part.
        total: parameters.
        root: parameters that belong to no block.
        in_linears: weights of linear layers, without the head.
        ins: what goes into these layers, their sizes added up.
        outs: what comes out of them.
        like_llama: blocks seem to be of Llama's layout.

    """

    hidden: int
    blocks: int
    vocabulary: int
    heads: int
    kv: int
    inner: int
    total: int
    root: int
    in_linears: int
    ins: int
    outs: int
    like_llama: bool

    @property
    def gate(self) -> int:
        """Parameters of the gate."""
        return 2 * self.hidden * (self.hidden + 1) + self.hidden


def shape_of(lm_config: Any) -> Shape:
    """Return the shape of a model without its weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(lm_config)  # type: ignore[no-untyped-call]
    text = lm_config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    head = lm.get_output_embeddings()
    linears = [layer for layer in lm.modules() if isinstance(layer, nn.Linear) and layer is not head]
    return Shape(
        hidden=text.hidden_size,
        blocks=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        heads=heads * width,
        kv=(getattr(text, "num_key_value_heads", None) or heads) * width,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        total=sum(p.numel() for p in lm.parameters()),
        root=sum(p.numel() for name, p in lm.named_parameters() if not re.search(r"\.\d+\.", name)),
        in_linears=sum(layer.weight.numel() for layer in linears),
        ins=sum(layer.in_features for layer in linears),
        outs=sum(layer.out_features for layer in linears),
        like_llama=_like_llama(lm, text),
    )


def _like_llama(lm: Any, text: Any) -> bool:
    """Whether blocks seem to be of Llama's layout."""
    names = {name.split(".", 2)[-1] for name, _ in lm.base_model.named_modules() if name.startswith("layers.0.")}
    has = {"self_attn.q_proj", "mlp.gate_proj", "post_attention_layernorm"}
    lacks = {"self_attn.q_norm", "pre_feedforward_layernorm"}
    return has <= names and not lacks & names and getattr(text, "hidden_act", None) == "silu"
