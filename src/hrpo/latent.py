"""What is fed in place of a token while the model thinks: a way to think is a `LatentMode`, all are in `LATENT_MODES`.

Every mode feeds f(e, h): e the embedding of the token that is written, h a latent made from the step that chose it.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from hrpo.common.errors import InputError
from hrpo.gate import HybridGate, candidate_norm

Source = Literal["none", "interpolation", "mixture", "hidden"]


@dataclass(frozen=True)
class ThinkingStep:
    """One decode step of n rows, as a latent sees it.

    probs: (n, K) the distribution that tokens were sampled from, over the sampler's candidates; (n, V) without top_k.
    hidden: (n, D) what the head read when it chose the tokens; for modes whose source is "hidden".
    uniforms: (n,) random numbers in 0..1 that depend on the completion and the position alone.
    mix: the weighted sum of the candidates' embeddings, weights like `probs` -> (n, D).
    """

    probs: Tensor
    hidden: Tensor | None
    uniforms: Tensor
    mix: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LatentMode:
    """One way to think. A mode of another kind overrides `latent` or `feed`.

    source: "interpolation", the mean embedding p W_e / ||p||_2; "mixture", p W_e; "hidden", what the head read when it
        chose the token; "none", and tokens alone are fed.
    gated: the gate mixes e and h; else it is `a e + (1 - a) h`, a from `token_share`.
    input_gate, one_a: see `HybridGate.forward`.
    likeliest: thinking writes the likeliest token at each step instead of a sample.
    trains: it can be trained.
    top_p: "mixture" is over the smallest set of likeliest candidates with this probability, 1 for all of them.
    beta: how far the sampled token outweighs the distribution; None: it weighs nothing.
    description: what the model thinks in, to complete "it thinks ...".
    """

    source: Source
    gated: bool = False
    input_gate: bool = True
    one_a: bool = False
    likeliest: bool = False
    trains: bool = True
    top_p: float = 1.0
    beta: float | None = None
    description: str = field(default="", compare=False)

    @property
    def thinks(self) -> bool:
        """Whether anything but tokens is fed."""
        return self.source != "none"

    @property
    def stores(self) -> bool:
        """Whether a rollout keeps the latents themselves, because they cannot be made again from its candidates."""
        return self.source == "hidden" or type(self).latent is not LatentMode.latent

    def weigh(self, probs: Tensor) -> Tensor:
        """Return what each candidate's embedding weighs in the latent: (..., K) -> (..., K)."""
        if self.source == "interpolation":
            return probs / candidate_norm(probs)
        return probs if self.top_p == 1 else nucleus(probs, self.top_p)

    def latent(self, step: ThinkingStep) -> Tensor:
        """Return the latents of a step: (n, D)."""
        return step.mix(self.weigh(step.probs)) if step.hidden is None else step.hidden

    def token_share(self, probs: Tensor) -> Tensor:
        """Return what the written token's own embedding weighs beside the latent, without a gate: (..., K) -> (..., 1).

        In Mixture of Inputs the candidates weigh w = (H p + (beta + 1 - H) y) / (beta + 1), y the token that was
        sampled and H in 0..1 the entropy of p over its greatest possible, log K. That is (1 - a) p + a y,
        a = 1 - H / (beta + 1).
        """
        if self.beta is None:
            return torch.zeros_like(probs[..., :1])
        most = math.log(max(probs.shape[-1], 2))  # of one candidate H is 0
        entropy = torch.special.entr(probs).sum(dim=-1, keepdim=True) / most
        share: Tensor = 1 - entropy / (self.beta + 1)
        return share

    def feed(self, gate: HybridGate, embeds: Tensor, latents: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is fed.

        Args:
            gate: used, and with gradient, by gated modes only.
            embeds: (..., D) e.
            latents: (..., D) h.
            share: (..., 1) from `token_share`; of no use to gated modes.

        Returns:
            The input (..., D), and a, the weight of e in it, (..., D) or (..., 1).

        """
        if self.gated:
            out, a = gate(embeds, latents, input_gate=self.input_gate, one_a=self.one_a)
            return out, a
        return share * embeds.to(latents.dtype) + (1 - share) * latents, share


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest candidates up to the one that brings them to `top_p`, and let them sum to 1 again."""
    ordered, places = probs.sort(dim=-1, descending=True, stable=True)
    kept = torch.where(ordered.cumsum(dim=-1) - ordered < top_p, ordered, 0)
    kept = kept / kept.sum(dim=-1, keepdim=True).clamp(min=1e-12)  # above 0 where nothing was sampled
    return torch.zeros_like(probs).scatter(-1, places, kept)


_MIX = "in a mix of tokens and latent states"
LATENT_MODES: dict[str, LatentMode] = {
    # HRPO (arXiv:2505.18454)
    "hybrid": LatentMode("interpolation", gated=True, description=f"{_MIX} (HRPO)"),
    # GRPO (arXiv:2402.03300)
    "discrete": LatentMode("none", description="in tokens alone (GRPO, without latents)"),
    # HRPO's Figure 3
    "interpolation": LatentMode("interpolation", description="in mean embeddings of what it might say, without a gate"),
    # HRPO's Figure 3; as in Coconut (arXiv:2412.06769)
    "hidden": LatentMode("hidden", description="in its own last hidden states, without a gate"),
    # ablations of ours: parts of HRPO left out
    "no_input_gate": LatentMode(
        "interpolation", gated=True, input_gate=False, description=f"{_MIX} (HRPO without its input gate)"
    ),
    "no_norm": LatentMode("mixture", gated=True, description=f"{_MIX} (HRPO without the norm of its latents)"),
    "scalar_a": LatentMode(
        "interpolation", gated=True, one_a=True, description=f"{_MIX} (HRPO with one a for all channels)"
    ),
    # arXiv:2505.15778
    "soft_thinking": LatentMode(
        "mixture",
        likeliest=True,
        trains=False,
        top_p=0.95,
        description="in mean embeddings of what it might say (Soft Thinking)",
    ),
    # arXiv:2505.14827
    "mixture_of_inputs": LatentMode(
        "mixture",
        trains=False,
        beta=1.0,
        description="in mixtures of tokens and what it might say (Mixture of Inputs)",
    ),
}
# Modes that another room adds to `LATENT_MODES` when it is imported, which happens when one of them is asked for.
FROM_ROOMS = dict.fromkeys(("swapped", "noise"), "hrpo.experiments.interventions")


def mode_names() -> list[str]:
    """Return the names of all modes."""
    return list(dict.fromkeys([*LATENT_MODES, *FROM_ROOMS]))


def mode_of(name: str, mixed_in: Source = "interpolation", field: str = "latent_mode") -> LatentMode:
    """Return a mode by name.

    Args:
        name: one of `mode_names`.
        mixed_in: the source of the latent that "hybrid" mixes in.
        field: what asks for it, for the message.

    Raises:
        InputError: there is none of this name.

    """
    if name not in LATENT_MODES and name in FROM_ROOMS:
        importlib.import_module(FROM_ROOMS[name])
    if name not in LATENT_MODES:
        raise InputError(field, f"must be one of {', '.join(mode_names())}, got {name!r}")
    mode = LATENT_MODES[name]
    return replace(mode, source=mixed_in) if name == "hybrid" else mode
