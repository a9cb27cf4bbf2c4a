"""What is fed in place of a token while the model thinks: the paper's method, its ablations, and training-free peers.

Every mode feeds f(e, h): e the embedding of the token that is written, h a latent made from the step that chose it.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hrpo.config.schema import LatentMode, MixedIn
from hrpo.gate import HybridGate, candidate_norm


@dataclass(frozen=True)
class Mode:
    """One way to think; `MODES` has them by name.

    latent: "interpolation", the mean embedding p W_e / ||p||_2; "mixture", p W_e; "hidden", what the head read when
        it chose the token; "none", and tokens alone are fed.
    gated: the gate mixes e and h; else it is `a e + (1 - a) h`, a from `token_share`.
    input_gate, one_a: see `HybridGate.forward`.
    replaced: what is fed instead of each completion's own latents: those of another one ("swapped"), or "noise".
    likeliest: thinking writes the likeliest token at each step instead of a sample.
    trains: it can be trained.
    top_p: "mixture" is over the smallest set of likeliest candidates with this probability, 1 for all of them.
    beta: how far the sampled token outweighs the distribution; None: it weighs nothing.
    """

    latent: Literal["none", "interpolation", "mixture", "hidden"]
    gated: bool = False
    input_gate: bool = True
    one_a: bool = False
    replaced: Literal["", "swapped", "noise"] = ""
    likeliest: bool = False
    trains: bool = True
    top_p: float = 1.0
    beta: float | None = None


MODES: dict[LatentMode, Mode] = {
    "hybrid": Mode("interpolation", gated=True),  # HRPO (arXiv:2505.18454)
    "discrete": Mode("none"),  # GRPO (arXiv:2402.03300)
    "interpolation": Mode("interpolation"),  # HRPO's Figure 3
    "hidden": Mode("hidden"),  # HRPO's Figure 3; as in Coconut (arXiv:2412.06769)
    "no_input_gate": Mode(
        "interpolation", gated=True, input_gate=False
    ),  # this and the next four are ablations of ours
    "no_norm": Mode("mixture", gated=True),
    "scalar_a": Mode("interpolation", gated=True, one_a=True),
    "swapped": Mode("interpolation", gated=True, trains=False, replaced="swapped"),
    "noise": Mode("interpolation", gated=True, trains=False, replaced="noise"),
    "soft_thinking": Mode("mixture", likeliest=True, trains=False, top_p=0.95),  # arXiv:2505.15778
    "mixture_of_inputs": Mode("mixture", trains=False, beta=1.0),  # arXiv:2505.14827
}


def mode_of(name: LatentMode, mixed_in: MixedIn) -> Mode:
    """Return a mode by name; `mixed_in` is the latent that "hybrid" mixes in."""
    mode = MODES[name]
    return replace(mode, latent=mixed_in) if name == "hybrid" else mode


def weigh(mode: Mode, probs: Tensor) -> Tensor:
    """Return what each candidate's embedding weighs in the latent: (..., K) -> (..., K)."""
    if mode.latent == "interpolation":
        return probs / candidate_norm(probs)
    return probs if mode.top_p == 1 else nucleus(probs, mode.top_p)


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest candidates up to the one that brings them to `top_p`, and let them sum to 1 again."""
    ordered, places = probs.sort(dim=-1, descending=True, stable=True)
    kept = torch.where(ordered.cumsum(dim=-1) - ordered < top_p, ordered, 0)
    kept = kept / kept.sum(dim=-1, keepdim=True).clamp(min=1e-12)  # above 0 where nothing was sampled
    return torch.zeros_like(probs).scatter(-1, places, kept)


def token_share(mode: Mode, probs: Tensor) -> Tensor:
    """Return what the written token's own embedding weighs beside the latent, without a gate: (..., K) -> (..., 1).

    In Mixture of Inputs the candidates weigh w = (H p + (beta + 1 - H) y) / (beta + 1), y the token that was sampled
    and H in 0..1 the entropy of p over its greatest possible, log K. That is (1 - a) p + a y, a = 1 - H / (beta + 1).
    """
    if mode.beta is None:
        return torch.zeros_like(probs[..., :1])
    most = math.log(max(probs.shape[-1], 2))  # of one candidate H is 0
    entropy = torch.special.entr(probs).sum(dim=-1, keepdim=True) / most
    share: Tensor = 1 - entropy / (mode.beta + 1)
    return share


def noise_table(rows: int, size: int, like: Tensor) -> Tensor:
    """Return vectors of length 1 in random directions, always the same: (rows, size)."""
    vectors = torch.randn(rows, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1).to(like)


def put_in_place(mode: Mode, latents: Tensor, draws: Tensor, noise: Tensor) -> Tensor:
    """Return what stands in for the latents of a step where these are `replaced`.

    Args:
        mode: "swapped" gives each completion those of the row before it, whichever is decoded there, and its own where
            it is the last one; "noise" a random direction, drawn anew at each step, of the latent's own length.
        latents: (n, D).
        draws: (n,) in 0..1.
        noise: (rows, D) from `noise_table`.

    """
    if mode.replaced == "swapped":
        return latents.roll(1, dims=0)
    vectors: Tensor = noise[(draws * len(noise)).long()]
    length: Tensor = latents.norm(dim=1, keepdim=True)
    return vectors * length


def feed(mode: Mode, gate: HybridGate, embeds: Tensor, latents: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is fed.

    Args:
        mode: any but tokens alone.
        gate: used, and with gradient, by gated modes only.
        embeds: (..., D) e.
        latents: (..., D) h.
        share: (..., 1) from `token_share`; of no use to gated modes.

    Returns:
        The input (..., D), and a, the weight of e in it, (..., D) or (..., 1).

    """
    if mode.gated:
        out, a = gate(embeds, latents, input_gate=mode.input_gate, one_a=mode.one_a)
        return out, a
    return share * embeds.to(latents.dtype) + (1 - share) * latents, share
