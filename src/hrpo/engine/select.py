"""Which accelerator serves a device."""

import functools
import importlib
import importlib.util

import torch

from hrpo.engine.interface import DEFAULT, Accelerator, EngineOptions

ACCELERATORS = {
    "cpu": "hrpo.engine.cpu.accelerator:CpuAccelerator",
    "cuda": "hrpo.engine.cuda.accelerator:CudaAccelerator",
    "torch": "hrpo.engine.interface:Accelerator",
}


def accelerator_for(device: torch.device, options: EngineOptions = DEFAULT) -> Accelerator:
    """Return the accelerator that the options name, or the first that is there and serves the device; else PyTorch's.

    Raises:
        ValueError: there is none of this name.

    """
    asked = options.accelerator
    if isinstance(asked, str) and asked not in ("auto", *ACCELERATORS):
        raise ValueError(f"accelerator: must be auto or one of {', '.join(ACCELERATORS)}, got {asked!r}")
    for name in list(ACCELERATORS) if asked == "auto" else [asked]:
        found = _accelerator(name) if isinstance(name, str) else name
        if found is not None and found.serves(device):
            return found
    return Accelerator()


@functools.cache
def _accelerator(name: str) -> Accelerator | None:
    """Return one by name; None where its room has been left out of this installation."""
    module, _, attribute = ACCELERATORS[name].partition(":")
    try:
        importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    made: Accelerator = getattr(importlib.import_module(module), attribute)()
    return made
