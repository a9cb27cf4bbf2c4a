"""Blocks of Llama's layout for decoding on CPUs: the same with a fourth of the operations, or one (`csrc/blocks.cpp`).

Norm, attention with rotary embeddings, norm, SwiGLU, each half added to what came in: so are the blocks of Llama,
Mistral, Qwen, SmolLM and others (Qwen3's have norms of queries and keys, too). A block that looks like one is tried
beside its compiled replacement, and keeps its own way where they differ. A decode step of all blocks is one call where
compiled code does their products, too.
"""

import contextlib
import ctypes
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrpo.engine.attention import Layout, layout_in_use
from hrpo.engine.cpu.build import Compiled
from hrpo.engine.cpu.decode_attention import Step, step_of
from hrpo.engine.cpu.linear import CompiledLayer, PackedLinear, PackedProduct
from hrpo.engine.cpu.norms import CompiledNorm
from hrpo.engine.like_llama import NotLikeLlamaError, alike


class _Norm(ctypes.Structure):
    """`Norm` of the C++ code."""

    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_float), ("twice", ctypes.c_bool))


class _Block(ctypes.Structure):
    """`Block` of the C++ code."""

    _fields_ = (
        *((name, CompiledLayer) for name in ("inward", "outward", "gate_and_up", "down")),
        *((name, _Norm) for name in ("first", "second", "q_norm", "k_norm")),
    )


class _Member(NamedTuple):
    """A block of a line: its part of the C++ code's arguments, its layer, heads, and scale of scores."""

    parts: _Block
    layer: int
    H: int
    scale: float


class _Line:
    """Blocks that each read what the one before gave, at the same positions: a decode step of all is one call.

    The first does it when it is called, and the others let through what it gave. So nothing else may read or change
    what is handed from one to the next; models do not. A line knows no blocks, and keeps no tensors but the last: with
    a circle of references packed weights would outlive their rollout.

    Args:
        function: the C++ code's, for blocks of `dtype`.
        dtype: of all.

    """

    def __init__(self, function: Any, dtype: torch.dtype) -> None:
        self.function, self.dtype = function, dtype
        self.members: list[_Member] = []
        self.out: Tensor | None = None  # (1, n, D)

    def step(self, x: Tensor, cosine: Tensor, sine: Tensor, layout: Layout) -> Tensor:
        """(n, D), (n, d), (n, d) -> (1, n, D)."""
        steps = [step_of(kv, m.H, m.scale) for m in self.members if (kv := layout.kv(m.layer))]
        parts = [ctypes.addressof(member.parts) for member in self.members]
        out = torch.empty_like(x)
        places = (part.data_ptr() for part in (x, cosine, sine, out))
        n = len(parts)
        self.function((ctypes.c_void_p * n)(*parts), (Step * n)(*steps), n, *places, len(x), torch.get_num_threads())
        self.out = out.unsqueeze(0)
        return self.out


class _Lines:
    """How the blocks of a copy make up lines, which shows while they run one by one, on prompts."""

    def __init__(self) -> None:
        self.last: tuple[_Line | None, Tensor, Tensor] | None = None  # what ran last: its line, output and cosines

    def add(self, block: "CompiledBlock", hidden: Tensor, cosine: Tensor, out: Tensor) -> None:
        """Note what a block got and gave."""
        before, given, at = self.last or (None, None, None)
        block.line = None
        if block.parts:
            follows = hidden is given and cosine is at
            if before and follows and before.dtype == block.dtype:
                block.line = before
            else:
                block.line = _Line(block.whole, block.dtype)
            block.line.members.append(_Member(block.parts, block.layer, block.H, block.scale))
        self.last = block.line, out, cosine


class CompiledBlock(nn.Module):
    """A block for decoding only, which keeps no gradient.

    Args:
        block: the model's own, its linear layers and norms already those of a decoding copy.
        library: compiled code.
        lines: of the copy.

    Raises:
        NotLikeLlamaError: it lacks a part, or has it in another form.

    """

    def __init__(self, block: Any, library: Compiled, lines: _Lines) -> None:
        super().__init__()
        try:
            attention, mlp = block.self_attn, block.mlp
            self.first_norm, self.second_norm = block.input_layernorm, block.post_attention_layernorm
            self.inward = _together(attention.q_proj, attention.k_proj, attention.v_proj)
            self.outward, self.down = _together(attention.o_proj), _together(mlp.down_proj)
            self.gate_and_up = _together(mlp.gate_proj, mlp.up_proj)
            self.layer, self.d, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
        except AttributeError as error:
            raise NotLikeLlamaError(str(error)) from error
        self.q_norm: Any = getattr(attention, "q_norm", None)
        self.k_norm: Any = getattr(attention, "k_norm", None)
        norms = (self.first_norm, self.second_norm, *(norm for norm in (self.q_norm, self.k_norm) if norm is not None))
        if not all(isinstance(norm, CompiledNorm) for norm in norms):
            raise NotLikeLlamaError("its norms are of another kind")
        # Compiled code trusts in what it is told of types.
        products = (self.inward, self.outward, self.gate_and_up, self.down)
        self.dtype, self.H = self.first_norm.dtype, self.inward.sizes[0] // self.d
        self.width = len(self.first_norm.scales)
        rotate, swiglu = (library.find(name, self.first_norm.norm.weight) for name in ("rotate", "swiglu"))
        if not rotate or not swiglu or any(part.dtype != self.dtype for part in (*norms, *products)):
            raise NotLikeLlamaError("it computes in several types")
        self.rotate, self.swiglu = rotate, swiglu
        self.parts: _Block | None = None  # for one call
        self.lines = lines
        self.line: _Line | None = None  # known once it has run by itself
        self.whole: Any = library.find("blocks", self.first_norm.norm.weight)
        if self.whole and all(product.multiply for product in products):
            ours = (self.first_norm, self.second_norm, self.q_norm, self.k_norm)
            self.parts = _Block(*(product.layer for product in products), *map(_norm, ours))

    @property
    def leads(self) -> bool:
        """Whether it is the first of its line."""
        return self.line is not None and self.line.members[0].parts is self.parts

    def forward(self, hidden: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any) -> Tensor:
        """(1, S, D), cosines and sines (1, S, d) -> (1, S, D)."""
        if self.line and hidden is self.line.out and not self.leads:
            return hidden
        layout = layout_in_use()
        x = hidden[0].contiguous()
        cosine, sine = (part[0].to(self.dtype).contiguous() for part in position_embeddings)
        if self.line and layout.kv(self.layer):
            if not self.leads:
                raise RuntimeError("a block got something else than what the one before gave, as it had on the prompts")
            self.lines.last = None  # tensors of prompts
            return self.line.step(x, cosine, sine, layout)
        query, key, value = (part.view(len(x), -1, self.d) for part in self.inward.compute(self.first_norm(x)))
        if self.q_norm is not None:
            query = self.q_norm(query)
        if self.k_norm is not None:
            key = self.k_norm(key)
        query, key = (rotated(self.rotate, part, cosine, sine) for part in (query, key))
        attended = layout.attend(self.layer, query, key, value, self.scale)
        x = self.outward.compute(attended.flatten(1))[0].add_(x)
        gate, up = self.gate_and_up.compute(self.second_norm(x))
        out = self.down.compute(activated(self.swiglu, gate, up))[0].add_(x).unsqueeze(0)
        self.lines.add(self, hidden, position_embeddings[0], out)
        return out


def rotated(function: Any, x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor | None = None) -> Tensor:
    """Apply rotary embeddings by the compiled function: (S, H, d), (S, d), (S, d) -> (S, H, d).

    `out` is contiguous, and may be x.
    """
    S, H, d = x.shape
    if x.stride()[1:] != (d, 1):
        x = x.contiguous()
    out = x.new_empty(S, H, d) if out is None else out
    places = (cosine.data_ptr(), sine.data_ptr(), out.data_ptr())
    function(x.data_ptr(), x.stride(0), *places, S, H, d, torch.get_num_threads())
    return out


def activated(function: Any, gate: Tensor, up: Tensor, out: Tensor | None = None) -> Tensor:
    """Return SwiGLU's product by the compiled function: (S, I), (S, I), rows as far apart -> (S, I)."""
    S, width = gate.shape
    out = gate.new_empty(S, width) if out is None else out
    function(gate.data_ptr(), up.data_ptr(), gate.stride(0), out.data_ptr(), S, width, torch.get_num_threads())
    return out


def compiled_blocks(lm: Any, library: Compiled, known: Collection[str] | None) -> dict[str, CompiledBlock]:
    """Return, by name, what may stand in for blocks of a decoding copy.

    Args:
        lm: the copy.
        library: compiled code.
        known: names of the blocks for which it may, where that has been tried.

    """
    replacements, lines = {}, _Lines()
    rotary = getattr(lm.base_model, "rotary_emb", None)
    for name, block in lm.named_modules():
        if name.rpartition(".")[2].isdigit() and (known is None or name in known):
            with contextlib.suppress(NotLikeLlamaError):
                replacement = CompiledBlock(block, library, lines)
                if known is not None or alike(block, replacement, rotary):
                    replacements[name] = replacement
    return replacements


def _together(*layers: Any) -> PackedProduct:
    """Return the product that does all of these layers' work, and no more."""
    product = layers[0].product if isinstance(layers[0], PackedLinear) else None
    indices = [layer.index for layer in layers if isinstance(layer, PackedLinear) and layer.product is product]
    if product is None or indices != list(range(len(product.sizes))) or len(indices) != len(layers):
        raise NotLikeLlamaError("its linear layers read other tensors")
    return product


def _norm(norm: CompiledNorm | None) -> _Norm:
    return _Norm() if norm is None else _Norm(norm.scales.data_ptr(), norm.eps, norm.twice)
