"""Blocks of Llama's layout while adapters are trained on CPUs: half of the operations, and two thirds of what is kept.

The model's own block keeps what each small operation needs for its gradient: beside each linear layer's input, what
norms, rotary embeddings and SwiGLU made on the way there. Here compiled code does those, and does them again in the
backward pass; kept are the block's input and that of its second half, queries, keys and values, what attention gave,
and SwiGLU's two inputs. A block is replaced only if it gives what the model's own gives.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hrpo.engine.adapters import Adapted, adapted
from hrpo.engine.attention import layout_in_use
from hrpo.engine.cpu.adapters import PRODUCTS
from hrpo.engine.cpu.blocks import activated, rotated
from hrpo.engine.cpu.build import Compiled
from hrpo.engine.cpu.norms import CompiledNorm, compiled_norms
from hrpo.engine.layers import linear_layers
from hrpo.engine.like_llama import NotLikeLlamaError, alike


class Scratch:
    """Room for what no block keeps, used by one after the other.

    Taken anew by each it would lie between what blocks keep, and leave holes there.
    """

    def __init__(self) -> None:
        self.rooms: dict[str, Tensor] = {}

    def like(self, x: Tensor, name: str) -> Tensor:
        """Return room of x's shape, and with a name: what it held before is lost."""
        room = self.rooms.get(name)
        if room is None or room.shape != x.shape or room.dtype != x.dtype:
            room = self.rooms[name] = x.new_empty(x.shape)
        return room


class TrainedBlock:
    """What a block does, for its `forward`.

    Args:
        block: the model's own.
        norms: compiled ones, by the `id` of the model's own.
        library: compiled code.
        scratch: shared by all blocks.

    Raises:
        NotLikeLlamaError: it lacks a part, or has it in another form, or something but adapters in it is trained.

    """

    def __init__(self, block: Any, norms: dict[int, CompiledNorm], library: Compiled, scratch: Scratch) -> None:
        self.scratch = scratch
        try:
            attention, mlp = block.self_attn, block.mlp
            self.inward = (attention.q_proj, attention.k_proj, attention.v_proj)
            self.outward = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            self.first_norm, self.second_norm = (
                norms[id(norm)] for norm in (block.input_layernorm, block.post_attention_layernorm)
            )
            self.layer, self.d, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
        except (AttributeError, KeyError) as error:
            raise NotLikeLlamaError(str(error)) from error
        self.dtype, self.width = self.first_norm.dtype, len(self.first_norm.scales)
        self.recomputing = False  # see `patched`
        plain = {id(layer) for _, layer in linear_layers(block)}
        for layer in (*self.inward, *self.outward):
            if id(layer) not in plain or not (type(layer) is nn.Linear or PRODUCTS.simple(layer)):
                raise NotLikeLlamaError("its linear layers are of another kind")
            if adapted(layer).weight.dtype != self.dtype:
                raise NotLikeLlamaError("it computes in several types")
        if self.second_norm.dtype != self.dtype:
            raise NotLikeLlamaError("it computes in several types")
        names = ("rotate", "swiglu", "swiglu_backward", "rms_norm_backward")
        self.functions: dict[str, Any] = {name: library.find(name, self.first_norm.norm.weight) for name in names}
        trained = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
        if any(".lora_" not in name for name in trained):
            raise NotLikeLlamaError("it is trained itself")
        # Modules inside are not called here. (Sharded parameters, whole for a running block alone, have no norms.)
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        inside = [module for module in block.modules() if module is not block]
        if any(getattr(module, name) for module in inside for name in hooks):
            raise NotLikeLlamaError("it has hooks inside")
        if any("forward" in vars(module) for module in block.modules()):
            raise NotLikeLlamaError("somebody has put a forward of theirs there")

    def __call__(self, hidden: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any) -> Tensor:
        """(1, S, D), cosines and sines (1, S, d) -> (1, S, D)."""
        x = hidden[0].contiguous()
        cosine, sine = (part[0].contiguous() for part in position_embeddings)
        inward, outward = ([adapted(layer) for layer in layers] for layers in (self.inward, self.outward))
        query, key, value = _Inward.apply(x, self, cosine, sine, inward, *_trained(inward))  # type: ignore[no-untyped-call]
        out = layout_in_use().attend(self.layer, query, key, value, self.scale)
        y: Tensor = _Outward.apply(out.flatten(1), x, self, outward, *_trained(outward))  # type: ignore[no-untyped-call]
        return y.unsqueeze(0)

    def rotated(self, x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor | None = None) -> Tensor:
        """(S, H, d), (S, d), (S, d) -> (S, H, d), x itself if it is given twice."""
        return rotated(self.functions["rotate"], x, cosine, sine, out)

    def normed(self, norm: CompiledNorm, x: Tensor) -> Tensor:
        """(S, D) -> (S, D), in the scratch."""
        return norm(x, self.scratch.like(x, "normed"))  # type: ignore[no-any-return]

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """(S, I), (S, I) -> (S, I), in the scratch."""
        return activated(self.functions["swiglu"], gate, up, self.scratch.like(gate, "active"))

    def activated_back(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of gate and up, the second in the place of what is given: (S, I) each."""
        out = torch.empty_like(gate)
        self.functions["swiglu_backward"](*_places(gate, up, grad, out, grad), *gate.shape, torch.get_num_threads())
        return out, grad

    def normed_back(self, norm: CompiledNorm, x: Tensor, grad: Tensor, more: Tensor | None = None) -> Tensor:
        """Return the gradient of x, what else reaches it included: (S, D) each."""
        out = torch.empty_like(x)
        places = (*_places(x, grad), None if more is None else more.data_ptr(), *_places(norm.scales, out))
        self.functions["rms_norm_backward"](*places, *x.shape, norm.eps, torch.get_num_threads())
        return out


class _Inward(torch.autograd.Function):
    """Norm, then queries and keys, with their positions, and values: (S, D) -> (S, H, d), twice (S, H_kv, d)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: TrainedBlock, cosine: Tensor, sine: Tensor, layers: list[Adapted], *_: Tensor
    ) -> tuple[Tensor, ...]:
        outs, low = PRODUCTS.run(layers, block.normed(block.first_norm, x))
        query, key, value = (out.view(len(x), -1, block.d) for out in outs)
        ctx.save_for_backward(x, cosine, sine, low, *_trained(layers))
        ctx.block, ctx.layers = block, [layer._replace(A=None, B=None) for layer in layers]
        return block.rotated(query, cosine, sine, query), block.rotated(key, cosine, sine, key), value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, cosine, sine, low, *trained = ctx.saved_tensors
        block, layers = ctx.block, _with(ctx.layers, trained)
        back = -sine.roll(block.d // 2, 1)  # the transposed of the rotation, whatever the two halves of sines are
        query, key = (block.rotated(grad, cosine, back) for grad in grads[:2])
        flat = [grad.reshape(len(x), -1) for grad in (query, key, grads[2])]
        needs_x = ctx.needs_input_grad[0]
        normed = block.normed(block.first_norm, x)
        for_normed, parameters = PRODUCTS.run_back(layers, normed, low, flat, needs_x=needs_x)
        for_x = block.normed_back(block.first_norm, x, for_normed) if needs_x else None
        return for_x, None, None, None, None, *parameters


class _Outward(torch.autograd.Function):
    """All after attention: (S, H * d) of it and the block's input (S, D) -> (S, D)."""

    @staticmethod
    def forward(
        ctx: Any, attended: Tensor, x: Tensor, block: TrainedBlock, layers: list[Adapted], *_: Tensor
    ) -> Tensor:
        o, *gate_and_up, down = layers
        (out,), low = PRODUCTS.run([o], attended)
        middle = out.add_(x)
        (gate, up), low_inside = PRODUCTS.run(gate_and_up, block.normed(block.second_norm, middle))
        active = block.activated(gate, up)
        if block.recomputing:  # for what is kept: nobody reads the output
            y, low_down = torch.empty_like(x), PRODUCTS.low_of([down], active)
        else:
            (y,), low_down = PRODUCTS.run([down], active)
            y.add_(middle)
        ctx.save_for_backward(attended, middle, gate, up, low, low_inside, low_down, *_trained(layers))
        ctx.block, ctx.layers = block, [layer._replace(A=None, B=None) for layer in layers]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        attended, middle, gate, up, low, low_inside, low_down, *trained = ctx.saved_tensors
        block, layers = ctx.block, _with(ctx.layers, trained)
        o, *gate_and_up, down = layers
        grad = grad.contiguous()
        for_active, for_down = PRODUCTS.run_back([down], block.activated(gate, up), low_down, [grad])
        both = block.activated_back(gate, up, for_active)
        for_normed, for_gate_and_up = PRODUCTS.run_back(
            gate_and_up, block.normed(block.second_norm, middle), low_inside, both
        )
        del for_active, both
        for_middle = block.normed_back(block.second_norm, middle, for_normed, grad)
        for_attended, for_o = PRODUCTS.run_back([o], attended, low, [for_middle])
        return for_attended, for_middle, None, None, *for_o, *for_gate_and_up, *for_down


def _trained(layers: list[Adapted]) -> list[Tensor | None]:
    """Return what autograd has to know of."""
    return [part for layer in layers for part in (layer.A, layer.B)]


def _with(layers: list[Adapted], trained: list[Tensor | None]) -> list[Adapted]:
    """Return layers with what `_trained` took from them."""
    pairs = zip(trained[::2], trained[1::2], strict=True)
    return [layer._replace(A=A, B=B) for layer, (A, B) in zip(layers, pairs, strict=True)]


def _places(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def trained_blocks(lm: Any, library: Compiled, tried: dict[str, bool]) -> dict[str, TrainedBlock]:
    """Return, by name, what may stand in for the forward of a model's blocks.

    Args:
        lm: a transformers model, with adapters or without.
        library: compiled code.
        tried: by name, blocks that have been compared with their replacements, and whether they agree; is added to.

    """
    norms = {id(norm): compiled for norm, compiled in compiled_norms(lm, library)}
    rotary = getattr(lm.base_model, "rotary_emb", None)
    replacements, scratch = {}, Scratch()
    for name, block in lm.named_modules():
        if name.rpartition(".")[2].isdigit() and tried.get(name, True):
            with contextlib.suppress(NotLikeLlamaError):
                replacement = TrainedBlock(block, norms, library, scratch)
                if name not in tried:
                    with PRODUCTS.fused(block):
                        tried[name] = alike(block, replacement, rotary)
                if tried[name]:
                    replacements[name] = replacement
    return replacements


@contextlib.contextmanager
def patched(replacements: Iterable[tuple[nn.Module, TrainedBlock]], *, recomputing: bool = False) -> Iterator[None]:
    """Within it, blocks do what their replacements do.

    Args:
        replacements: beside their blocks.
        recomputing: they run for what they keep alone; what they return is not read, and not computed to the end.

    """
    pairs = list(replacements)
    for block, replacement in pairs:
        vars(block)["forward"], replacement.recomputing = replacement, recomputing
    try:
        yield
    finally:
        for block, replacement in pairs:
            del vars(block)["forward"]
            replacement.recomputing = False
