"""CUDA's accelerator: PyTorch's own kernels in fewer calls, without padding, and decode steps as graphs."""

import contextlib
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hrpo.common.per_model import PerModel
from hrpo.engine.adapters import AdapterProducts
from hrpo.engine.checkpointing import fitting_tokens, kept_bytes, share_to_recompute
from hrpo.engine.cuda import attention
from hrpo.engine.cuda.graphs import CapturedSteps
from hrpo.engine.cuda.inference_model import InferenceModel, signature
from hrpo.engine.interface import Accelerator, DecodingKernels, EngineOptions, State, TrainingKernels
from hrpo.engine.packing_probe import read_together
from hrpo.engine.spans import Packing
from hrpo.model import HybridCausalLM

PRODUCTS = AdapterProducts()
UNCOUNTED = 1.25  # what blocks keep in all, over what their linear layers read and write
USABLE = 0.8  # of the memory that is free: the rest is for the head, and for holes
OF_TRAINED = 12  # bytes of gradient and AdamW for each number that is trained


@dataclass
class Known:
    """What is kept of a model.

    decoding: how it decodes, by options.
    blocks: names of those that decode with fewer kernels; None: not tried yet.
    room: bytes for activations, as they were free at the first update; None before.
    """

    decoding: dict[EngineOptions, "CudaDecoding"] = field(default_factory=dict)
    blocks: list[str] | None = None
    room: int | None = None


known: PerModel[Known] = PerModel(Known)


class CudaAccelerator(Accelerator):
    """Joined products, FlashAttention without padding, fused adapters, CUDA graphs."""

    def serves(self, device: torch.device) -> bool:
        """See `Accelerator`."""
        return device.type == "cuda"

    def decoding(self, model: HybridCausalLM, options: EngineOptions) -> DecodingKernels:
        """See `Accelerator`; the same as before where only the weights have changed."""
        kept = known.of(model).decoding
        if options not in kept:
            kept.clear()  # whatever it holds, it is gigabytes
            kept[options] = CudaDecoding(model, options)
        return kept[options]

    def training(self, model: HybridCausalLM, options: EngineOptions) -> TrainingKernels:
        """See `Accelerator`."""
        return CudaTraining(model)

    def packed_bytes(self, dtype: torch.dtype) -> int:
        """See `Accelerator`: layers that are joined are copied."""
        return dtype.itemsize

    def microbatch(self, model: HybridCausalLM) -> tuple[int, int]:
        """See `Accelerator`; as many as the memory allows that is free at the first update."""
        tokens = fitting_tokens(_kept(model, 1), _room(model))
        return tokens, tokens

    def checkpointing_share(self, model: HybridCausalLM, tokens: int) -> float:
        """See `Accelerator`; none where a micro-batch fits as it is."""
        return share_to_recompute(_kept(model, tokens), _room(model))


def _kept(model: HybridCausalLM, tokens: int) -> int:
    """Return about the bytes that all blocks keep of so many tokens."""
    return round(UNCOUNTED * kept_bytes(model.bare_lm, tokens, model.autocast or model.lm_dtype))


def _room(model: HybridCausalLM) -> int:
    """Return the bytes that activations may take."""
    learnt = known.of(model)
    if learnt.room is None:
        free, _ = torch.cuda.mem_get_info(model.device)
        free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        to_come = OF_TRAINED * sum(p.numel() for p in model.parameters() if p.requires_grad)
        learnt.room = max(0, round(USABLE * (free - to_come)))
    return learnt.room


class CudaDecoding(DecodingKernels):
    """How one model decodes; kept as long as the model is, which it therefore does not keep."""

    def __init__(self, model: HybridCausalLM, options: EngineOptions) -> None:
        super().__init__(model, options)
        self.static = options.static_shapes is not False and options.packed
        self.copy: InferenceModel | None = None
        self.steps = CapturedSteps()
        self.tensors: dict[str, Tensor] = {}

    @property
    def model(self) -> HybridCausalLM:
        """Which decodes."""
        model = self.of()
        assert model is not None
        return model

    @model.setter
    def model(self, model: HybridCausalLM) -> None:
        self.of = weakref.ref(model)

    def inference_model(self) -> Any:
        """See `DecodingKernels`; the same copy, with the weights of now."""
        model, learnt = self.model, known.of(self.model)
        if self.copy is None or self.copy.made_of != signature(model):
            self.copy = None  # its memory serves the next one
            self.forget_steps()
            with torch.no_grad():
                self.copy = InferenceModel(model, read_together(model), fold=self.options.folded_adapter)
            learnt.blocks = self.copy.use_blocks(learnt.blocks)
        else:
            self.copy.load(model)
        return self.copy.lm

    def sdpa(self, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        """See `DecodingKernels`."""
        return attention.sdpa(query, key, value, scale, mask)

    def scores(self, query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """See `DecodingKernels`."""
        out = attention.scores(query, keys, bias, scale)
        return super().scores(query, keys, bias, scale) if out is None else out

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """See `DecodingKernels`."""
        kept = self.tensors.get(name)
        if not self.static:
            return tensor
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            self.forget_steps()
            kept = self.tensors[name] = torch.empty_like(tensor)
        return kept.copy_(tensor)

    def repeat(self, step: Callable[[State], State], state: State, key: Hashable) -> State:
        """See `DecodingKernels`."""
        return step(state) if key is None else self.steps.run(step, state, key)

    def forget_steps(self) -> None:
        """See `DecodingKernels`."""
        capturable = self.steps.capturable
        self.steps = CapturedSteps()
        self.steps.capturable = capturable


class CudaTraining(TrainingKernels):
    """How one model is replayed: attention without padding, adapters fused with their layers."""

    sdpa = staticmethod(attention.sdpa)

    def __init__(self, model: HybridCausalLM) -> None:
        self.fuses = model.autocast is None  # layers choose the dtype by themselves under autocast

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor | None:
        """See `TrainingKernels`."""
        return attention.attend_packed(query, key, value, packing, scale)

    def running(self, lm: Any) -> contextlib.AbstractContextManager[Any]:
        """See `TrainingKernels`."""
        return PRODUCTS.fused(lm) if self.fuses else contextlib.nullcontext()

    def recomputing(self, block: Any) -> contextlib.AbstractContextManager[Any]:
        """See `TrainingKernels`."""
        return self.running(block)
