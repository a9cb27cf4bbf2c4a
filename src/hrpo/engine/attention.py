"""Attention over packed sequences, plugged into unmodified models through transformers' `AttentionInterface`.

The model runs on one row of tokens, (1, S, D): several sequences end to end, each with its own position ids. Which
token attends to which is known to a `Layout` alone; the model's linear layers never see padding.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from hrpo.engine.kv import KVLayout

NAME = "hrpo_packed"
# What models may hand to their attention without changing what it computes here; anything else is not for us.
HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
HARMLESS |= {"output_hidden_states", "return_dict", "position_embeddings", "past_key_values", "past_key_value"}


class NotPackableError(Exception):
    """The model's attention is of a kind that packed sequences do not serve; the plain path does.

    Args:
        reason: why, in words that complete "takes the plain path: ...".
        window: sequences up to this long are served all the same.

    """

    def __init__(self, reason: str, window: int = 0) -> None:
        super().__init__(reason)
        self.window = window


class Layout(Protocol):
    """Which tokens of the row belong together."""

    longest: int  # positions of the longest sequence

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(S, H, d), (S, H_kv, d), (S, H_kv, d_v) -> (S, H, d_v)."""
        ...

    def kv(self, layer: int) -> KVLayout | None:
        """Return where a decode step's keys and values stand; None where this is no decode step."""
        return None


_layout: ContextVar[Layout] = ContextVar("layout")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, H, S, d), (1, H_kv, S, d), (1, H_kv, S, d_v) -> (1, S, H, d_v)."""
    layout = getattr(module, "layout", None) or _layout.get()
    unknown = [name for name, value in options.items() if value is not None and name not in HARMLESS]
    if unknown:
        raise NotPackableError(f"its attention takes {', '.join(unknown)}")
    if sliding_window is not None and sliding_window < layout.longest:
        raise NotPackableError(f"its attention slides over {sliding_window} tokens", window=sliding_window)
    if getattr(module, "layer_idx", None) is None:
        raise NotPackableError("its attention layers have no layer_idx")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    device = query.device.type
    if torch.is_autocast_enabled(device):  # a rotated key is float32 again; attention takes what autocast would give it
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = layout.attend(module.layer_idx, q, k, v, scale)
    return out.unsqueeze(0), None


# Not in AttentionMaskInterface too: models then make no mask at all, and the layout has its own.
AttentionInterface.register(NAME, _attend)


def use_packed_attention(lm: Any) -> str:
    """Let a transformers model attend through a `Layout`; return what it used before."""
    before: str = lm.config._attn_implementation
    lm.set_attn_implementation(NAME)
    if lm.config._attn_implementation != NAME:
        raise NotPackableError("its attention cannot be exchanged")
    return before


@contextlib.contextmanager
def packed_attention(lm: Any) -> Iterator[None]:
    """Within it, the model attends through a `Layout`."""
    before = use_packed_attention(lm)
    try:
        yield
    finally:
        lm.set_attn_implementation(before)


@contextlib.contextmanager
def packed_block(block: nn.Module) -> Iterator[None]:
    """Within it, a block of a model that can attend through a `Layout` does; fifty times faster than for the model."""
    found = (getattr(part, "config", None) for part in block.modules())
    configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


@contextlib.contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Within it, this is the layout that attention goes by."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def bind_layout(lm: Any, layout: Layout) -> None:
    """Let a model's attention go by this layout alone from now on, without looking it up: what traces it sees no break.

    Args:
        lm: a copy that nothing else uses.
        layout: known to each module that has a layer_idx, or asks for one by `layout`.

    """
    for module in lm.modules():
        if hasattr(module, "layer_idx") or "layout" in vars(module):
            vars(module)["layout"] = layout


def layout_in_use() -> Layout:
    """Return the layout that attention goes by."""
    return _layout.get()


def run_packed(lm: Any, inputs: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Run a model's blocks on packed inputs: (S, D), (S,) -> hidden states (S, D), what its head reads."""
    with laid_out(layout):
        out = lm.base_model(inputs_embeds=inputs.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden[0]
