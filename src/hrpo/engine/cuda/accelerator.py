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
from hrpo.engine.cuda import attention
from hrpo.engine.cuda.graphs import CapturedSteps
from hrpo.engine.cuda.inference_model import InferenceModel, signature
from hrpo.engine.interface import Accelerator, DecodingKernels, EngineOptions, State, TrainingKernels
from hrpo.engine.packing_probe import read_together
from hrpo.engine.spans import Packing
from hrpo.model import HybridCausalLM

PRODUCTS = AdapterProducts()


@dataclass
class Known:
    """What is kept of a model between rollouts: how it decodes, by options, and names of blocks that allow more."""

    decoding: dict[EngineOptions, "CudaDecoding"] = field(default_factory=dict)
    blocks: list[str] | None = None


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
        self.steps = CapturedSteps()


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
