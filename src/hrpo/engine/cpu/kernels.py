"""Which compiled code a model uses: what this machine was measured to run faster with than with PyTorch and oneDNN.

Each kernel is timed beside what it stands in for, on tensors of the model's shapes, when a model of such shapes is
first decoded or trained on this machine. The times are kept beside the library, so that every later process makes the
same choice and computes the same numbers.
"""

import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from hrpo.common.files import write_text
from hrpo.common.locks import one_at_a_time
from hrpo.engine.attention import laid_out, layout_in_use, packed_block
from hrpo.engine.cpu.adapters import PRODUCTS
from hrpo.engine.cpu.blocks import activated, rotated
from hrpo.engine.cpu.build import DTYPES, Compiled, compiled
from hrpo.engine.cpu.decode_attention import attend_compiled
from hrpo.engine.cpu.linear import OneDNN, PackedProduct
from hrpo.engine.cpu.mixing import mix_compiled
from hrpo.engine.cpu.norms import compiled_norms
from hrpo.engine.cpu.packed_attention import attend_packed
from hrpo.engine.cpu.top_k import top_k_compiled
from hrpo.engine.cpu.trained_blocks import Scratch, TrainedBlock
from hrpo.engine.inference_model import LinearParts
from hrpo.engine.interface import DEFAULT, DecodingKernels, TrainingKernels
from hrpo.engine.kv import KVLayout
from hrpo.engine.like_llama import NotLikeLlamaError
from hrpo.engine.packed_decoder import PackedDecoder
from hrpo.engine.packing import PackedGroups
from hrpo.engine.spans import Packing
from hrpo.gate import mix_candidates
from hrpo.model import HybridCausalLM

Pair = tuple[Callable[[], Any], Callable[[], Any]]  # by compiled code, and without
ROUNDS, SECONDS = 15, 0.15  # of a trial, at most; two rounds at least
ROWS, GROUP, PROMPT, COMPLETION = 32, 8, 128, 64  # of a trial: rows that decode, 8 of each prompt, and tokens
BLOCK_PROMPT, BLOCK_COMPLETION, RANK = 32, 8, 32  # tokens when a whole block is trained, and rank of its adapters
TABLE = 16384  # rows of an embedding table, at most: more than caches hold
log = logging.getLogger("hrpo")


class Kernel(NamedTuple):
    """Functions of the compiled code that go together.

    Args:
        functions: their names.
        trial: returns what runs them, and what runs PyTorch's and oneDNN's in their place.
        least_gain: times as fast as those they have to be.

    """

    functions: tuple[str, ...]
    trial: Callable[[Compiled, "Shape"], Pair]
    least_gain: float = 1.1


@dataclass(frozen=True)
class Shape:
    """What a model's kernels work on: the dtype, widths D and I of blocks, heads, their size d, and the vocabulary."""

    dtype: torch.dtype
    D: int
    I: int  # noqa: E741
    H: int
    H_kv: int
    d: int
    V: int

    @classmethod
    def of(cls, model: HybridCausalLM) -> "Shape":
        """Return a model's; what its configuration does not tell is taken as Llama's layout would have it."""
        config = model.bare_lm.config.get_text_config()

        def number(name: str, default: int) -> int:
            try:
                value = getattr(config, name, None)
            except RuntimeError:  # transformers' word where it differs between layers
                value = None
            return value if isinstance(value, int) and value > 0 else default

        D = model.gate.hidden_size
        H = number("num_attention_heads", 1)
        H_kv = number("num_key_value_heads", H)
        return cls(
            dtype=model.autocast or model.lm_dtype,
            D=D,
            I=number("intermediate_size", 4 * D),
            H=H,
            H_kv=H_kv if H % H_kv == 0 else H,
            d=number("head_dim", max(D // H, 2)) // 2 * 2,  # rotary embeddings turn pairs
            V=model.vocab_size,
        )


def kernels_for(model: HybridCausalLM, task: Literal["decoding", "training"]) -> Compiled | None:
    """Return the compiled code that a model is to use; None where there is none, or none is faster.

    The first call for a model's shapes takes a second or two, and says what came out.

    Args:
        model: on a CPU.
        task: the two have kernels of their own.

    """
    shape = Shape.of(model)
    library = compiled()
    if library is None or shape.dtype not in DTYPES.values():
        return None
    return _chosen(library, shape, task, torch.get_num_threads())


@functools.cache
def _chosen(library: Compiled, shape: Shape, task: str, threads: int) -> Compiled | None:
    """Return the kernels that were faster."""
    chosen = _faster(_times(library, shape, task, threads), task)
    names = {name for kernel in chosen for name in KERNELS[task][kernel].functions}
    if not {"multiply", "attend", "rms_norm"} <= names:
        names.discard("blocks")  # which does all of it
    return library.only(names) if names else None


def _faster(times: dict[str, tuple[float, float]], task: str) -> list[str]:
    """Return the kernels that are used, given the seconds of each and of what it stands in for."""
    return [kernel for kernel, (ours, theirs) in times.items() if theirs >= KERNELS[task][kernel].least_gain * ours]


def _times(library: Compiled, shape: Shape, task: str, threads: int) -> dict[str, tuple[float, float]]:
    """Return each kernel's seconds and those of what it stands in for, measured unless they are kept."""
    path = library.path.with_suffix(".json")
    key = "/".join(map(str, (task, threads, torch.__version__, _processor(), *astuple(shape))))
    if key in (kept := _kept(path)):
        return kept[key]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a folder that can only be read
            stack.enter_context(one_at_a_time(path.parent))
        if key in (kept := _kept(path)):  # another process has measured meanwhile
            return kept[key]
        times = measure(library, shape, task)
        with contextlib.suppress(OSError):
            write_text(path, json.dumps({**kept, key: times}, indent=1))
    log.warning("%s", report(times, shape, task, threads))
    return times


def _kept(path: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the times of a file of ours; none where it is not there, or damaged."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: times for key, times in kept.items() if _are_times(times, key.partition("/")[0])}


def _are_times(times: Any, task: str) -> bool:
    """Whether these are pairs of seconds, of kernels that a task has."""
    return isinstance(times, dict) and all(
        kernel in KERNELS.get(task, ())
        and isinstance(pair, list)
        and [isinstance(seconds, float) and seconds > 0 for seconds in pair] == [True, True]
        for kernel, pair in times.items()
    )


def report(times: dict[str, tuple[float, float]], shape: Shape, task: str, threads: int) -> str:
    """Say in a line what is used."""
    used = _faster(times, task)
    parts = [
        f"{kernel} {theirs / ours:.2f}" + ("" if kernel in used else " (not used)")
        for kernel, (ours, theirs) in times.items()
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    what = f"{str(shape.dtype).removeprefix('torch.')}, width {shape.D}, {threads} thread{'s' * (threads > 1)}"
    found = ", ".join(parts) or "nothing that PyTorch does not have"
    return f"{task} on this CPU ({capability}; {what}), compiled code over PyTorch, times as fast: {found}"


@functools.cache
def _processor() -> str:
    """Return what tells kinds of processors apart, where the system says: a cache may be shared by several machines."""
    names = ("cpu family", "model", "model name", "cache size")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        fields = dict(line.partition(":")[::2] for line in lines)
        found = {name.strip(): value.strip() for name, value in fields.items()}
        return " ".join(found.get(name, "") for name in names)
    return ""


def measure(library: Compiled, shape: Shape, task: str) -> dict[str, tuple[float, float]]:
    """Return each kernel's seconds and those of what it stands in for; kernels that the library lacks are left out."""
    times: dict[str, tuple[float, float]] = {}
    like = torch.empty(0, dtype=shape.dtype)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        for name, kernel in KERNELS[task].items():
            if all(library.find(function, like) for function in kernel.functions):
                with contextlib.suppress(NotLikeLlamaError):
                    times[name] = _alternately(*kernel.trial(library, shape))
    return times


def _alternately(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Return the least seconds of either, in turn, after one run of each: what else the machine does only adds."""
    best = [float("inf"), float("inf")]
    ours(), theirs()
    start = time.perf_counter()
    for rounds in range(ROUNDS):
        if rounds > 1 and time.perf_counter() - start > SECONDS:
            break
        for i, run in enumerate((ours, theirs)):
            begun = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - begun)
    return best[0], best[1]


def _random(shape: Shape, *sizes: int) -> Tensor:
    return torch.randn(sizes).to(shape.dtype)


def _products(library: Compiled, shape: Shape) -> Pair:
    """A block's products: for prompts, and in as many steps as a completion has tokens."""
    D, I, width = shape.D, shape.I, shape.H * shape.d  # noqa: E741
    sizes = ((D, width + 2 * shape.H_kv * shape.d), (width, D), (D, 2 * I), (I, D))
    weights = [LinearParts(_random(shape, outs, ins)) for ins, outs in sizes]
    steps, prompts = ([_random(shape, rows, ins) for ins, _ in sizes] for rows in (ROWS, PROMPT))

    def run(products: list[PackedProduct]) -> None:
        for product, step, prompt in zip(products, steps, prompts, strict=True):
            product.compute(prompt)
            for _ in range(COMPLETION * PROMPT // (ROWS * GROUP)):
                product.compute(step)

    ours, theirs = ([PackedProduct([weight], code) for weight in weights] for code in (library, None))
    return lambda: run(ours), lambda: run(theirs)


class _AttentionAlone(nn.Module):
    """A model of one layer that does nothing but attend: to random queries, keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.base_model = shape, self.attend
        self.device = torch.device("cpu")

    def embed(self, ids: Tensor) -> Tensor:
        """(S,) -> (S, 1)."""
        return ids.unsqueeze(1)

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """See `HybridCausalLM`."""
        return contextlib.nullcontext()

    def get_output_embeddings(self) -> Callable[[Tensor], Tensor]:
        """Return a head that lets through what it reads."""
        return lambda hidden: hidden

    def attend(self, inputs_embeds: Tensor, **_: Any) -> SimpleNamespace:
        """(1, S, 1) -> (1, S, H * d), named as transformers does."""
        s, S = self.shape, inputs_embeds.shape[1]
        query, key, value = (_random(s, S, heads, s.d) for heads in (s.H, s.H_kv, s.H_kv))
        out = layout_in_use().attend(0, query, key, value, s.d**-0.5)
        return SimpleNamespace(last_hidden_state=out.flatten(1).unsqueeze(0))


class _AttentionKernels(DecodingKernels):
    def __init__(self, model: Any, library: Compiled | None) -> None:
        super().__init__(model, DEFAULT)
        self.library = library

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kv: KVLayout, scale: float) -> Tensor | None:
        """See `DecodingKernels`."""
        return attend_compiled(self.library, query, key, value, kv, scale) if self.library else None


def _attention(library: Compiled, shape: Shape) -> Pair:
    """The attention of some decode steps."""
    decoders = []
    for code in (library, None):
        model: Any = _AttentionAlone(shape)
        kernels = _AttentionKernels(model, code)
        decoder = PackedDecoder(model, kernels, prompts=ROWS // GROUP, longest_prompt=PROMPT, max_new_tokens=COMPLETION)
        decoder.admit([[0] * PROMPT] * (ROWS // GROUP), GROUP)
        decoders.append(decoder)

    inputs = torch.zeros(ROWS, 1)
    for decoder in decoders:
        for _ in range(COMPLETION // 2):
            decoder.step(inputs)

    @torch.inference_mode()
    def run(decoder: PackedDecoder) -> None:
        decoder.compute(inputs)  # again and again the same step

    return lambda: run(decoders[0]), lambda: run(decoders[1])


@torch.no_grad()
def _elementwise(library: Compiled, shape: Shape) -> Pair:
    """What a block does to a step's rows between its products and attention."""
    x = _random(shape, ROWS, shape.D)
    norm = LlamaRMSNorm(shape.D).to(shape.dtype)
    ((_, compiled_norm),) = compiled_norms(norm, library)
    query, key = (_random(shape, ROWS, heads, shape.d) for heads in (shape.H, shape.H_kv))
    cosine, sine = (_random(shape, ROWS, shape.d) for _ in range(2))
    gate, up = _random(shape, ROWS, 2 * shape.I).chunk(2, dim=1)
    rotate, swiglu = (library.find(name, x) for name in ("rotate", "swiglu"))

    def ours() -> None:
        compiled_norm(x), compiled_norm(x)
        rotated(rotate, query, cosine, sine), rotated(rotate, key, cosine, sine)
        activated(swiglu, gate, up)

    def theirs() -> None:
        norm(x), norm(x)
        apply_rotary_pos_emb(query, key, cosine, sine)
        F.silu(gate) * up

    return ours, torch.no_grad()(theirs)


def _candidates(library: Compiled, shape: Shape) -> Pair:
    """The sampler's candidates."""
    logits, k = _random(shape, ROWS, shape.V), min(50, shape.V)

    def run(code: Compiled | None) -> None:
        if code is None:
            torch.topk(logits.float(), k), torch.logsumexp(logits.float(), dim=1)
        else:
            top_k_compiled(code, logits, k, torch.float32)

    return lambda: run(library), lambda: run(None)


def _mixture(library: Compiled, shape: Shape) -> Pair:
    """The mean of candidates' embeddings."""
    table = _random(shape, min(shape.V, TABLE), shape.D)
    ids, weights = torch.randint(len(table), (ROWS, 50)), torch.rand(ROWS, 50)

    def run(code: Compiled | None) -> None:
        if code is None or mix_compiled(code, ids, weights, table) is None:
            mix_candidates(ids, weights, table)

    return lambda: run(library), lambda: run(None)


class _PackedAttention(TrainingKernels):
    def __init__(self, library: Compiled | None) -> None:
        self.library = library

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor | None:
        """See `TrainingKernels`."""
        return attend_packed(self.library, query, key, value, packing, scale) if self.library else None


def _layout(prompt: int, completion: int, library: Compiled | None) -> PackedGroups:
    """A group to train on, of so many tokens each."""
    masks = torch.ones(1, prompt, dtype=torch.long), torch.ones(GROUP, completion, dtype=torch.long)
    return PackedGroups(*masks, GROUP, _PackedAttention(library))


def _training_attention(library: Compiled, shape: Shape) -> Pair:
    """Attention of a group, forward and back."""
    layouts = [_layout(PROMPT, COMPLETION, code) for code in (library, None)]
    S, s = len(layouts[0].positions), shape
    query, key, value = inputs = [_random(s, S, heads, s.d).requires_grad_() for heads in (s.H, s.H_kv, s.H_kv)]
    grad = _random(s, S, s.H, s.d)

    def run(layout: PackedGroups) -> None:
        torch.autograd.grad(layout.attend(0, query, key, value, s.d**-0.5), inputs, grad)

    return lambda: run(layouts[0]), lambda: run(layouts[1])


def _trained_block(library: Compiled, shape: Shape) -> Pair:
    """A block of Llama's layout with adapters, forward and back.

    Raises:
        NotLikeLlamaError: adapters beside weights of this type are left to PEFT on this machine.

    """
    config = LlamaConfig(
        hidden_size=shape.D,
        intermediate_size=shape.I,
        num_attention_heads=(H := math.gcd(shape.D, shape.H)),  # the configuration wants a divisor of the width
        num_key_value_heads=math.gcd(H, shape.H_kv),
        head_dim=shape.d,
    )
    block = LlamaDecoderLayer(config, 0).to(shape.dtype).requires_grad_(False)
    layers = [name.rpartition(".")[2] for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=RANK, target_modules=layers), block)
    block.eval()
    for name, parameter in block.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    norms = {id(own): ours for own, ours in compiled_norms(block, library)}
    ours = TrainedBlock(block, norms, library, Scratch())
    layout = _layout(BLOCK_PROMPT, BLOCK_COMPLETION, library)
    x = _random(shape, 1, len(layout.positions), shape.D).requires_grad_()
    embeddings = LlamaRotaryEmbedding(config)(x, layout.positions.unsqueeze(0))
    inputs = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]

    def run(forward: Any) -> None:
        with packed_block(block), laid_out(layout):
            out = forward(x, attention_mask=None, position_embeddings=embeddings)
        torch.autograd.grad(out, inputs, x.detach())

    def theirs() -> None:
        with OneDNN(), PRODUCTS.fused(block):
            run(block)

    return lambda: run(ours), theirs


KERNELS = {
    "decoding": {
        "products": Kernel(("multiply", "blocks"), _products),
        "attention": Kernel(("attend",), _attention),
        "norms, rotary embeddings, SwiGLU": Kernel(("rms_norm", "rotate", "swiglu"), _elementwise),
        "candidates": Kernel(("candidates",), _candidates),
        "latents": Kernel(("mix",), _mixture),
    },
    "training": {
        "attention": Kernel(("attend_packed", "attend_packed_backward"), _training_attention),
        # Most of a block's time are products, which are oneDNN's either way; and it keeps two thirds of the memory.
        "blocks": Kernel(
            ("rms_norm", "rms_norm_backward", "rotate", "swiglu", "swiglu_backward"), _trained_block, least_gain=1.0
        ),
    },
}
