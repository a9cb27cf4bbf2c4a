"""How far each token of the vocabulary opens the gates, without any rollout: both see the token's embedding alone."""

from collections.abc import Callable

import torch

from hrpo.model import HybridCausalLM

CHUNK = 2048  # tokens at a time


@torch.no_grad()
def gates_of(
    model: HybridCausalLM, on_done: Callable[[int], None] = lambda count: None
) -> tuple[list[float], list[float]]:
    """Return the means over channels of a and i for every token id, V numbers each.

    Args:
        model: its gate should be a trained one.
        on_done: called with the number of tokens that have just been done.

    """
    a, i = list[float](), list[float]()
    ids = torch.arange(len(model.embedding.weight), device=model.device)[: model.vocab_size]
    for at in range(0, len(ids), CHUNK):
        part = ids[at : at + CHUNK]
        embeds = model.embed(part).to(model.gate.Lambda.dtype)  # (n, D)
        a += model.gate(embeds, torch.zeros_like(embeds))[1].mean(dim=1).tolist()
        i += torch.sigmoid(model.gate.input_gate(embeds)).mean(dim=1).tolist()
        on_done(len(part))
    return a, i
