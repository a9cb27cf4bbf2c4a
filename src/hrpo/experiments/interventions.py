"""Latent modes that feed something else than a completion's own latents, to see whether these matter."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hrpo.latent import LATENT_MODES, LatentMode, ThinkingStep

DIRECTIONS = 4096  # random ones that "noise" draws from


@dataclass(frozen=True)
class Swapped(LatentMode):
    """Each completion gets the latents of the row before it, whichever is decoded there; its own if it is alone."""

    def latent(self, step: ThinkingStep) -> Tensor:
        """See `LatentMode`."""
        return super().latent(step).roll(1, dims=0)


@dataclass(frozen=True)
class Noise(LatentMode):
    """Latents in random directions, drawn anew at each step, as long as the completion's own."""

    def latent(self, step: ThinkingStep) -> Tensor:
        """See `LatentMode`."""
        own = super().latent(step)
        directions = _directions(own.shape[1], own.dtype, own.device)
        length: Tensor = own.norm(dim=1, keepdim=True)
        return directions[(step.uniforms * len(directions)).long()] * length


@functools.lru_cache(maxsize=2)
def _directions(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return vectors of length 1 in random directions, always the same: (DIRECTIONS, size)."""
    vectors = torch.randn(DIRECTIONS, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1).to(device, dtype)


LATENT_MODES["swapped"] = Swapped(
    "interpolation",
    gated=True,
    trains=False,
    description="in a mix of tokens and other completions' latent states",
)
LATENT_MODES["noise"] = Noise("interpolation", gated=True, trains=False, description="in a mix of tokens and noise")
