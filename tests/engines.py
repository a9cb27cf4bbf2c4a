"""What tests of the engine share: models with adapters, and rollouts that are the same."""

import dataclasses

import torch
from models import CONFIGS, random_model
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from hrpo import HybridCausalLM, Rollout
from hrpo.engine.cuda.accelerator import CudaAccelerator
from hrpo.engine.interface import DEFAULT

G = 4
ARCHS = list(CONFIGS)


WINDOW = {"mistral": 6, "gemma3": 6}  # tokens that their attention slides over


def same(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def adapted(arch: str, dtype: torch.dtype = torch.float64) -> HybridCausalLM:
    """A model with adapters that do something."""
    model = random_model(arch, dtype)
    lm = get_peft_model(model.lm, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return HybridCausalLM(lm, model.gate, model.settings).to(dtype)


def same_rollouts(one: Rollout, other: Rollout, atol):
    for field in dataclasses.fields(Rollout):
        value = getattr(one, field.name)
        if isinstance(value, torch.Tensor) and not field.name.startswith("support"):
            same(getattr(other, field.name), value, atol)
    mask = one.completion_mask.bool()
    same(other.support_probs[mask], one.support_probs[mask], atol)


STATIC = dataclasses.replace(DEFAULT, static_shapes=True)
SEVEN = [[7 + n, *range(8, 8 + n % 5)] for n in range(7)]  # of different lengths


class Operations(TorchDispatchMode):
    """Note every operation: the function, its arguments and its result."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, args, kwargs or {}, out))
        return out

    def described(self):
        """Names, and arguments with shapes, types and strides for tensors."""
        return [
            (str(func), str(tree_map_only(torch.Tensor, lambda x: (x.shape, x.stride(), x.dtype), (args, kwargs))))
            for func, args, kwargs, _ in self.seen
        ]


def tensors(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def record(compute, warm_up, pool):
    """What `graphs.capture` does on a GPU."""
    warm_up()
    with Operations() as operations:
        compute()

    @torch.inference_mode()
    def repeat():
        for func, args, kwargs, results in operations.seen:
            given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
            for old, new in zip(tensors(results), tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # no view, nothing that was written in place
                    old.copy_(new)

    return repeat


class CudaOnCpu(CudaAccelerator):
    """The accelerator of CUDA devices, on tensors of a CPU; see `record`."""

    look_every = 2

    def serves(self, device):
        return True


CUDA_ON_CPU = dataclasses.replace(DEFAULT, accelerator=CudaOnCpu())
EAGER_CUDA_ON_CPU = dataclasses.replace(CUDA_ON_CPU, static_shapes=False)
