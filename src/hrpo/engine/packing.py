"""Groups packed for training: each prompt once, then its completions, no padding, with gradients through it all."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.engine.attention import Layout
from hrpo.engine.interface import TrainingKernels


class PackedGroups(Layout):
    """The order of a batch of groups in one row of S tokens: all prompts, then all completions but their last token.

    fed: (N, T) bools, the completion tokens that are in the row.
    positions: (S,).
    predicts_from: for each completion token, in row-major order of the mask, the place of the token before it.
    longest: tokens of the longest sequence.

    Args:
        prompt_mask: (B, P) of prompts, however padded.
        completion_mask: (N, T), padded on the right.
        group_size: G.
        kernels: to attend with, where they serve.

    """

    def __init__(
        self, prompt_mask: Tensor, completion_mask: Tensor, group_size: int, kernels: TrainingKernels | None = None
    ) -> None:
        self.kernels = kernels or TrainingKernels()
        G, device = group_size, completion_mask.device
        mask = completion_mask.bool()  # (N, T)
        T = mask.shape[1]
        self.group_size = G
        prompt_lengths, lengths = prompt_mask.sum(1), mask.sum(1)  # (B,), (N,)
        P, own = int(prompt_lengths.max()), max(T - 1, 0)
        self.longest = P + own
        steps, places = torch.arange(own, device=device), torch.arange(P, device=device)
        in_prompt = places < prompt_lengths.unsqueeze(1)  # (B, P)
        in_completion = steps < (lengths - 1).unsqueeze(1)  # (N, own): the last token is never fed
        self.fed = F.pad(in_completion, (0, T - own))  # (N, T)
        prompt_starts = prompt_lengths.cumsum(0) - prompt_lengths  # (B,)
        fed_lengths = in_completion.sum(1)
        starts = prompt_lengths.sum() + fed_lengths.cumsum(0) - fed_lengths  # (N,)
        # A place beyond a sequence's end repeats its first: nothing valid attends to it, nothing reads its output.
        self.prompt_places = prompt_starts.unsqueeze(1) + torch.where(in_prompt, places, 0)  # (B, P)
        self.completion_places = torch.where(in_completion, starts.unsqueeze(1) + steps, 0)  # (N, own)
        after = prompt_lengths.repeat_interleave(G).unsqueeze(1) + steps  # (N, own)
        self.positions = torch.cat([places.expand_as(in_prompt)[in_prompt], after[in_completion]])
        last_of_prompt = (prompt_starts + prompt_lengths - 1).repeat_interleave(G).unsqueeze(1)  # (N, 1)
        self.predicts_from = torch.cat([last_of_prompt, self.completion_places], dim=1)[mask]
        self.in_prompt = in_prompt
        # For kernels, prompts and then completions: where each begins, its tokens, the same of its prompt.
        prompts = torch.stack([prompt_starts, prompt_lengths], dim=1)  # (B, 2)
        completions = torch.stack([starts, fed_lengths], dim=1)  # (N, 2)
        alone = torch.cat([prompts, torch.zeros_like(prompts)], dim=1)
        self.sequences = torch.cat([alone, torch.cat([completions, prompts.repeat_interleave(G, dim=0)], dim=1)])
        self.unpad = torch.cat([in_prompt.flatten(), in_completion.flatten()]).nonzero().squeeze(1)  # (S,)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Prompts attend to themselves; completions to their group's prompt and to themselves."""
        G = self.group_size
        out = self.kernels.attend(query, key, value, self.sequences, G, scale)
        if out is not None:
            return out
        q, k, v = (_take(x, self.prompt_places) for x in (query, key, value))  # (B, heads, P, d)
        parts = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)]
        if self.completion_places.shape[1]:
            own = [_take(x, self.completion_places) for x in (query, key, value)]  # (N, heads, own, d)
            k, v = (x.repeat_interleave(G, dim=0) for x in (k, v))
            k, v = torch.cat([k, own[1]], dim=2), torch.cat([v, own[2]], dim=2)
            parts.append(
                F.scaled_dot_product_attention(own[0], k, v, attn_mask=self.mask, scale=scale, enable_gqa=True)
            )
        return self._pack(parts)

    @functools.cached_property
    def mask(self) -> Tensor:
        """What completions attend to of their prompt and of themselves: (N, 1, own, P + own) bools."""
        N, own = self.completion_places.shape
        steps = torch.arange(own, device=self.in_prompt.device)
        causal = (steps <= steps.unsqueeze(1)).expand(N, own, own)
        seen = self.in_prompt.repeat_interleave(self.group_size, dim=0).unsqueeze(1).expand(-1, own, -1)
        return torch.cat([seen, causal], dim=2).unsqueeze(1)

    def _pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Prompts (B, H, P, d), and completions (N, H, own, d) if some are fed -> (S, H, d)."""
        return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in parts]).index_select(0, self.unpad)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """(S, H, d), (B, P) -> (B, H, P, d); the backward pass of an indexing would be eight times slower."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)
