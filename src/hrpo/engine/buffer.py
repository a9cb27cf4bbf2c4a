"""Where completions are written while they are decoded, a token of each row at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrpo.data import Rollout, SamplingParams, left_pad
from hrpo.latent import LatentMode

Places = tuple[Tensor, Tensor]  # which completions, (n,), and which token of each, (n,)


class RolloutBuffer:
    """What a `Rollout` keeps of N completions of up to T tokens; see there.

    Args:
        N: completions.
        T: tokens of each, at most.
        candidates: how many are kept of a token.
        dense: the width of latents where they are kept themselves, else 0.
        pad: the token after the end.
        real: dtype of numbers.
        device: where it lies.
        keep: see `DecodingKernels`; what it keeps is written over by the next rollout, and a copy of it returned.

    """

    def __init__(
        self,
        N: int,
        T: int,
        candidates: int,
        dense: int,
        *,
        pad: int,
        real: torch.dtype,
        device: torch.device,
        keep: Callable[[str, Tensor], Tensor],
    ) -> None:
        self.pad = pad
        self.completion_ids = torch.full((N, T), pad, device=device)
        self.completion_mask = torch.zeros_like(self.completion_ids)
        self.hybrid_mask = torch.zeros_like(self.completion_ids, dtype=torch.bool)
        self.sample_logprobs = torch.zeros_like(self.completion_ids, dtype=real)
        self.gate_mean = torch.ones_like(self.sample_logprobs)
        self.support_ids = torch.zeros((N, T, candidates), dtype=torch.int32, device=device)
        self.support_probs = torch.zeros((N, T, candidates), dtype=real, device=device)
        self.dense_latents = torch.zeros((N, T, dense), dtype=real, device=device) if dense else None
        self.fresh = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name, value in self.fresh.items():
            setattr(self, name, keep(name, value))

    def write_tokens(
        self, at: Places, token: Tensor, logprob: Tensor, candidates: Tensor, probs: Tensor, live: Tensor
    ) -> None:
        """Write the tokens of n rows, and what they were chosen from, (n, K); of those not `live` only padding."""
        shown = self.support_ids.shape[2]
        self.completion_ids[at] = torch.where(live, token, self.pad)
        self.completion_mask[at] = live.long()
        self.sample_logprobs[at] = torch.where(live, logprob, 0)
        self.support_ids[at] = candidates[:, :shown].int()
        self.support_probs[at] = probs[:, :shown]

    def write_inputs(self, at: Places, thinking: Tensor, a: Tensor, latents: Tensor) -> None:
        """Write how the rows that are `thinking` are fed: a, (n, D) or (n, 1), and h, (n, D)."""
        self.hybrid_mask[at] = thinking
        self.gate_mean[at] = torch.where(thinking, a.mean(dim=1), 1)
        if self.dense_latents is not None:
            self.dense_latents[at] = torch.where(thinking.unsqueeze(1), latents, 0)

    def rollout(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: SamplingParams, top_k: int, mode: LatentMode
    ) -> Rollout:
        """Return what was written, with the prompts that it completes."""
        ids, mask = left_pad(prompts, self.pad, self.completion_ids.device)  # (B, P)
        written: dict[str, Any] = {"dense_latents": self.dense_latents}
        for name, fresh in self.fresh.items():  # the room that came empty, where another was written to
            kept = getattr(self, name)
            written[name] = kept if kept is fresh else fresh.copy_(kept)
        return Rollout(
            prompt_ids=ids,
            prompt_mask=mask,
            group_size=group_size,
            temperature=sampling.temperature,
            top_k=top_k,
            mode=mode,
            **written,
        )


def compacted(alive: Sequence[bool]) -> list[int]:
    """Return which old row each new row is: those that stay keep their place, the last ones fill the gaps.

    >>> compacted([True, False, True, True])
    [0, 3, 2]
    """
    count = sum(alive)
    order = list(range(count))
    gaps = [row for row in range(count) if not alive[row]]
    movers = [row for row in range(count, len(alive)) if alive[row]]
    for gap, mover in zip(gaps, movers, strict=True):
        order[gap] = mover
    return order
