"""The CPU's accelerator: what compiled code and oneDNN do in PyTorch's place, where that was measured to be faster."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from hrpo.common.per_model import PerModel
from hrpo.engine.checkpointing import kept_bytes, share_to_recompute
from hrpo.engine.cpu import malloc
from hrpo.engine.cpu.adapters import PRODUCTS
from hrpo.engine.cpu.decode_attention import attend_compiled
from hrpo.engine.cpu.inference_model import packed_gate, packed_model, with_compiled_blocks
from hrpo.engine.cpu.kernels import kernels_for
from hrpo.engine.cpu.linear import OneDNN, onednn_linear, product_dtype
from hrpo.engine.cpu.mixing import mix_compiled
from hrpo.engine.cpu.packed_attention import attend_packed
from hrpo.engine.cpu.top_k import top_k_compiled
from hrpo.engine.cpu.trained_blocks import TrainedBlock, patched, trained_blocks
from hrpo.engine.interface import Accelerator, DecodingKernels, EngineOptions, TrainingKernels
from hrpo.engine.kv import KVLayout
from hrpo.engine.packing_probe import read_together
from hrpo.engine.spans import Packing
from hrpo.gate import HybridGate
from hrpo.model import HybridCausalLM

LINEAR = (nn.Linear, LoraLayer)
HEAD_TILE = (512, 4096)  # 8 MB of logits, which stay in the processor's cache


@dataclasses.dataclass
class Known:
    """What is known about a model once it has been tried.

    decoding: names of blocks that compiled code decodes; None: not tried yet.
    training: by name, whether compiled code trains a block that was tried.
    trained: names of blocks that it trained in the last replay.
    """

    decoding: list[str] | None = None
    training: dict[str, bool] = dataclasses.field(default_factory=dict)
    trained: list[str] = dataclasses.field(default_factory=list)


known: PerModel[Known] = PerModel(Known)


@dataclasses.dataclass(frozen=True)
class CpuAccelerator(Accelerator):
    """Compiled code, oneDNN and the C library's allocator.

    Args:
        compiled: by compiled code what it was measured to do faster, see `kernels.py`; needs a C++ compiler.
        packed_weights: matrix products through oneDNN, with weights packed ahead for decoding.
        fused_adapters: train an adapter beside its frozen layer in one operation; needs packed_weights.

    """

    compiled: bool = True
    packed_weights: bool = True
    fused_adapters: bool = True

    head_tile = HEAD_TILE
    microbatch_tokens = (1024, 4096)  # larger ones are no faster
    look_every = 1

    def serves(self, device: torch.device) -> bool:
        """See `Accelerator`."""
        return device.type == "cpu"

    def decoding(self, model: HybridCausalLM, options: EngineOptions) -> DecodingKernels:
        """See `Accelerator`."""
        return CpuDecoding(model, options, self)

    def training(self, model: HybridCausalLM, options: EngineOptions) -> TrainingKernels:
        """See `Accelerator`."""
        return CpuTraining(model, self, packed=options.packed)

    def packed_bytes(self, dtype: torch.dtype) -> int:
        """See `Accelerator`; without instructions for bfloat16 weights are packed in float32."""
        packed = product_dtype(dtype, torch.device("cpu")) if self.packed_weights else None
        return packed.itemsize if packed else 0

    def checkpointing_share(self, model: HybridCausalLM, tokens: int) -> float:
        """Return so many that the others keep no more than the weights take, or 256 MB."""
        dtype = model.autocast or model.lm_dtype
        kept = kept_bytes(model.bare_lm, tokens, dtype, known.of(model).trained)
        return share_to_recompute(kept, sum(p.numel() * p.element_size() for p in model.bare_lm.parameters()))

    def configure_memory(self, *, sharded: bool) -> None:
        """See `Accelerator`."""
        malloc.map_tensors() if sharded else malloc.keep_freed()

    def release_memory(self) -> None:
        """See `Accelerator`."""
        malloc.release_memory()

    def settle_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Copy gradients, so that what is free stays in large pieces."""
        for parameter in parameters:
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()


class CpuDecoding(DecodingKernels):
    """How one model decodes."""

    def __init__(self, model: HybridCausalLM, options: EngineOptions, accelerator: CpuAccelerator) -> None:
        super().__init__(model, options)
        self.packs = accelerator.packed_weights
        self.library = kernels_for(model, "decoding") if accelerator.compiled else None

    def inference_model(self) -> Any:
        """See `DecodingKernels`."""
        model, library = self.model, self.library
        if not self.packs or product_dtype(model.autocast or model.lm_dtype, model.device) is None:
            return super().inference_model()
        lm = packed_model(model, library, read_together(model), fold=self.options.folded_adapter)
        if library:
            learnt = known.of(model)
            learnt.decoding = list(with_compiled_blocks(lm, library, learnt.decoding)) or None
        return lm

    def gate(self) -> HybridGate:
        """See `DecodingKernels`."""
        return packed_gate(self.model.gate, self.library) if self.packs else self.model.gate

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kv: KVLayout, scale: float) -> Tensor | None:
        """See `DecodingKernels`."""
        return attend_compiled(self.library, query, key, value, kv, scale) if self.library else None

    def top_k(self, logits: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecodingKernels`."""
        found = top_k_compiled(self.library, logits, k, dtype) if self.library else None
        return found or super().top_k(logits, k, dtype)

    def mix(self, ids: Tensor, weights: Tensor) -> Tensor:
        """See `DecodingKernels`."""
        embedding = self.model.embedding
        out = None
        if self.library and type(embedding) is nn.Embedding:
            out = mix_compiled(self.library, ids, weights, embedding.weight)
        return super().mix(ids, weights) if out is None else out


class CpuTraining(TrainingKernels):
    """How one model is replayed: blocks by compiled code, adapters fused with their layers, products by oneDNN."""

    head_tile = HEAD_TILE

    def __init__(self, model: HybridCausalLM, accelerator: CpuAccelerator, *, packed: bool) -> None:
        self.model, self.packs = model, accelerator.packed_weights
        self.library = kernels_for(model, "training") if accelerator.compiled and packed else None
        # Under autocast layers choose the dtype by themselves.
        self.fuses = accelerator.fused_adapters and self.packs and model.autocast is None
        self.blocks: dict[nn.Module, TrainedBlock] = {}
        self.complete: set[nn.Module] = set()  # models, and blocks, whose linear layers are all run by our blocks
        if packed:
            with model.weights() as lm:
                known.of(model).trained = self._find_blocks(lm)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `TrainingKernels`."""
        if x.dtype == weight.dtype and product_dtype(x.dtype, x.device):
            return onednn_linear(x, weight, bias)
        return F.linear(x, weight, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor | None:
        """See `TrainingKernels`."""
        return attend_packed(self.library, query, key, value, packing, scale) if self.library else None

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """See `TrainingKernels`."""
        return OneDNN() if self.packs else contextlib.nullcontext()

    def running(self, lm: Any) -> contextlib.AbstractContextManager[Any]:
        """See `TrainingKernels`."""
        if lm is not self.model.bare_lm:
            self._find_blocks(lm)
        return self._fused(lm, list(self.blocks.items()), recomputing=False)

    def recomputing(self, block: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """See `TrainingKernels`."""
        ours = [(block, self.blocks[block])] if block in self.blocks else []
        return self._fused(block, ours, recomputing=True)

    def _find_blocks(self, lm: Any) -> list[str]:
        """Note what can stand in for a model's blocks, and return their names."""
        library = self.library if self.fuses else None
        with self.model.precision():
            found = trained_blocks(lm, library, known.of(self.model).training) if library else {}
        self.blocks |= {lm.get_submodule(name): block for name, block in found.items()}
        self.complete |= self.blocks.keys()
        head, inside = lm.get_output_embeddings(), tuple(name + "." for name in found)
        linear = (name for name, part in lm.named_modules() if isinstance(part, LINEAR) and part is not head)
        if found and all(name.startswith(inside) for name in linear):
            self.complete.add(lm)
        return list(found)

    @contextlib.contextmanager
    def _fused(self, lm: nn.Module, ours: list[tuple[nn.Module, TrainedBlock]], *, recomputing: bool) -> Iterator[None]:
        """Within it, our blocks stand in for the model's; other layers run with their adapters, and by oneDNN.

        The latter two cost something at every operation and every layer, so they are left out where there is none.
        """
        with contextlib.ExitStack() as stack:
            if lm not in self.complete:
                stack.enter_context(self.products())
                if self.fuses:
                    stack.enter_context(PRODUCTS.fused(lm))
            stack.enter_context(patched(ours, recomputing=recomputing))
            yield
