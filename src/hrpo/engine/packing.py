"""Groups packed for training: each prompt once, then its completions, no padding, with gradients through it all."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hrpo.engine.attention import Layout
from hrpo.engine.interface import TrainingKernels
from hrpo.engine.spans import Spans


class PackedGroups(Layout):
    """The order of a batch of groups in one row of S tokens: all prompts, then all completions but their last token.

    All of it is worked out on the host from the lengths, and goes to the device in one copy.

    positions: (S,).
    prompt_tokens: (prompt tokens,), places of prompts' tokens in the flat (B * P) ids.
    fed: (S - prompt tokens,), places of the completion tokens that are in the row in the flat (N * T) ids.
    tokens: (tokens,), places of all completion tokens there.
    predicts_from: (tokens,), the place in the row of the token before each.
    sequences: (B * (1 + G), 4), prompts and then completions: where each begins, its tokens, the same of its prompt (0
        and 0 for prompts).
    longest: tokens of the longest sequence.

    Args:
        prompt_mask: (B, P) of prompts, padded on the left.
        completion_mask: (N, T), padded on the right.
        group_size: G.
        kernels: to attend with, where they serve.

    """

    def __init__(
        self, prompt_mask: Tensor, completion_mask: Tensor, group_size: int, kernels: TrainingKernels | None = None
    ) -> None:
        self.kernels, self.group_size = kernels or TrainingKernels(), group_size
        self.device, B, (P, T) = (
            completion_mask.device,
            len(prompt_mask),
            (prompt_mask.shape[1], completion_mask.shape[1]),
        )
        both = torch.cat([prompt_mask.sum(1), completion_mask.sum(1)]).tolist()
        self.prompts, lengths = np.array(both[:B]), np.array(both[B:])  # (B,), (N,)
        self.own = np.maximum(lengths - 1, 0)  # tokens of each completion in the row
        own_prompts = self.prompts.repeat(group_size)  # (N,)
        self.longest = int((own_prompts + self.own).max())
        self.prompt_starts, prompt_tokens = _starts(self.prompts), int(self.prompts.sum())
        self.starts = prompt_tokens + _starts(self.own)
        prompts = np.stack([self.prompt_starts, self.prompts], axis=1)  # (B, 2)
        completions = np.stack([self.starts, self.own], axis=1)  # (N, 2)
        alone, following = np.zeros_like(prompts), prompts.repeat(group_size, axis=0)
        rows = np.arange(len(lengths)) * T
        last_of_prompt = (self.prompt_starts + self.prompts - 1).repeat(group_size)
        before = np.where(_within(lengths) == 0, last_of_prompt.repeat(lengths), _ranges(self.starts - 1, lengths))
        (
            self.positions,
            self.prompt_tokens,
            self.fed,
            self.tokens,
            self.predicts_from,
            sequences,
        ) = self._moved(
            np.concatenate([_within(self.prompts), _ranges(own_prompts, self.own)]),
            _ranges((np.arange(B) + 1) * P - self.prompts, self.prompts),
            _ranges(rows, self.own),
            _ranges(rows, lengths),
            before,
            np.concatenate([np.hstack([prompts, alone]), np.hstack([completions, following])]).ravel(),
        )
        self.sequences = sequences.view(-1, 4)

    def _moved(self, *arrays: np.ndarray) -> Sequence[Tensor]:
        """Return arrays of integers on the device, in one copy."""
        flat = torch.from_numpy(np.concatenate(arrays)).to(self.device, torch.long)
        return torch.split(flat, [len(array) for array in arrays])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Prompts attend to themselves; completions to their group's prompt and to themselves."""
        out = self.kernels.attend(query, key, value, self, scale)
        if out is not None:
            return out
        prompt_places, completion_places, unpad = self.padded
        q, k, v = (_take(x, prompt_places) for x in (query, key, value))  # (B, heads, P, d)
        parts = [self.kernels.sdpa(q, k, v, scale)]
        if completion_places.shape[1]:
            own = [_take(x, completion_places) for x in (query, key, value)]  # (N, heads, own, d)
            k, v = (x.repeat_interleave(self.group_size, dim=0) for x in (k, v))
            k, v = torch.cat([k, own[1]], dim=2), torch.cat([v, own[2]], dim=2)
            parts.append(self.kernels.sdpa(own[0], k, v, scale, self.mask))
        return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in parts]).index_select(0, unpad)  # (S, H, d)

    @functools.cached_property
    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where tokens stand when sequences are padded: prompts (B, P), completions (N, own), and back again (S,).

        A place beyond a sequence's end repeats its first: nothing valid attends to it, nothing reads its output.
        """
        in_prompt, in_completion = _valid(self.prompts), _valid(self.own)
        prompts = self.prompt_starts[:, None] + np.where(in_prompt, np.arange(in_prompt.shape[1]), 0)
        completions = np.where(in_completion, self.starts[:, None] + np.arange(in_completion.shape[1]), 0)
        unpad = np.flatnonzero(np.concatenate([in_prompt.ravel(), in_completion.ravel()]))
        places = self._moved(prompts.ravel(), completions.ravel(), unpad)
        return places[0].view(prompts.shape), places[1].view(completions.shape), places[2]

    @functools.cached_property
    def mask(self) -> Tensor:
        """What completions attend to of their prompt and of themselves: (N, 1, own, P + own) bools."""
        in_prompt = torch.from_numpy(_valid(self.prompts)).to(self.device)
        N, own = len(self.own), int(self.own.max())
        steps = torch.arange(own, device=self.device)
        causal = (steps <= steps.unsqueeze(1)).expand(N, own, own)
        seen = in_prompt.repeat_interleave(self.group_size, dim=0).unsqueeze(1).expand(-1, own, -1)
        return torch.cat([seen, causal], dim=2).unsqueeze(1)

    @functools.cached_property
    def spans(self) -> Spans:
        """The sequences that have queries end to end, each completion's keys after those of its prompt."""
        G, some = self.group_size, self.own > 0
        before = self.prompts.repeat(G)[some], self.prompt_starts.repeat(G)[some]
        own, starts = self.own[some], self.starts[some]
        lengths = np.stack([before[0], own], axis=1).ravel()  # of prompt, completion, prompt, completion ...
        keys = _ranges(np.stack([before[1], starts], axis=1).ravel(), lengths)
        queries, reached = np.concatenate([self.prompts, own]), np.concatenate([self.prompts, before[0] + own])
        places, ends = self._moved(
            np.concatenate([np.arange(self.prompts.sum()), keys]),
            np.concatenate([_ends(queries), _ends(reached)]),
        )
        query_ends, key_ends = ends.int().view(2, -1)
        return Spans(places, query_ends, key_ends, int(queries.max()), int(reached.max()))


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Return where sequences begin that stand end to end: (n,) -> (n,)."""
    starts: np.ndarray = lengths.cumsum() - lengths
    return starts


def _ends(lengths: np.ndarray) -> np.ndarray:
    """(n,) -> (n + 1,) sums of lengths, from 0."""
    return np.concatenate([[0], lengths.cumsum()])


def _within(lengths: np.ndarray) -> np.ndarray:
    """Return each token's place in its sequence: (n,) -> (sum,)."""
    within: np.ndarray = np.arange(lengths.sum()) - _starts(lengths).repeat(lengths)
    return within


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return ranges of lengths from starts on, end to end: (n,), (n,) -> (sum,)."""
    ranges: np.ndarray = starts.repeat(lengths) + _within(lengths)
    return ranges


def _valid(lengths: np.ndarray) -> np.ndarray:
    """Return which places of padded sequences are tokens: (n,) -> (n, longest) bools."""
    valid: np.ndarray = np.arange(lengths.max()) < lengths[:, None]
    return valid


def _take(x: Tensor, places: Tensor) -> Tensor:
    """(S, H, d), (B, P) -> (B, H, P, d); the backward pass of an indexing would be eight times slower."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)
