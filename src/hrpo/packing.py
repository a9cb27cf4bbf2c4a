"""Groups packed for training: each prompt once, then its completions, no padding, with gradients through it all."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.attention import Layout
from hrpo.fused_attention import FusedAttention
from hrpo.linear import product_dtype
from hrpo.shared_prompt import SharedPromptAttention, attend_causally, attend_in_products

LONG_PROMPT = 512  # tokens from which it pays not to repeat a prompt's keys and values for each completion


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

    """

    def __init__(self, prompt_mask: Tensor, completion_mask: Tensor, group_size: int) -> None:
        G, device = group_size, completion_mask.device
        mask = completion_mask.bool()  # (N, T)
        N, T = mask.shape
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
        causal = (steps <= steps.unsqueeze(1)).expand(N, own, own)
        seen = in_prompt.repeat_interleave(G, dim=0).unsqueeze(1).expand(N, own, P)
        self.mask = torch.cat([seen, causal], dim=2).unsqueeze(1)  # (N, 1, own, P + own)
        self.unpad = torch.cat([in_prompt.flatten(), in_completion.flatten()]).nonzero().squeeze(1)  # (S,)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Prompts attend to themselves; completions to their group's prompt and to themselves."""
        d, P, device = query.shape[2], self.prompt_places.shape[1], query.device.type
        fused = device == "cpu" and value.shape[2] == d and query.dtype == key.dtype == value.dtype
        products = self._in_products(query)
        if fused and not products and P < LONG_PROMPT and not torch.is_autocast_enabled("cpu"):
            out: Tensor = FusedAttention.apply(query, key, value, self, scale)  # type: ignore[no-untyped-call]
            return out
        q, k, v = (self._prompts(x) for x in (query, key, value))  # (B, heads, P, d)
        if products:
            parts = [attend_causally(q, k, v, scale)]
        else:
            parts = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)]
        if self.mask.shape[2]:
            parts.append(self._attend_to_both(k, v, [self._completions(x) for x in (query, key, value)], scale))
        return self.pack(parts)

    def _attend_to_both(self, k: Tensor, v: Tensor, own: list[Tensor], scale: float) -> Tensor:
        """(B, H_kv, P, d) of the prompts, (N, heads, own, d) of the completions -> (N, H, own, d_v)."""
        query, key, value = own
        P, d = k.shape[2:]
        long = P >= LONG_PROMPT and query.device.type == "cpu" and v.shape[3] == d
        if long or self._in_products(query):
            bias = torch.where(self.in_prompt, 0.0, -torch.inf).to(query.dtype)[:, None, None]  # (B, 1, 1, P)
            arguments = (query, k, v, key, value, bias, scale, self.group_size)
            out: Tensor = SharedPromptAttention.apply(*arguments) if long else attend_in_products(*arguments)  # type: ignore[no-untyped-call]
            return out
        keys, values = self._before(k, key), self._before(v, value)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask, scale=scale, enable_gqa=True)

    def _in_products(self, query: Tensor) -> bool:
        """Whether all scores are computed: faster on a CPU that multiplies bfloat16, where they are few."""
        return self.longest < LONG_PROMPT and product_dtype(query.dtype, query.device) == torch.bfloat16

    def operands(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Return queries, keys, values and bias of what prompts attend to, causally, and of what completions do."""
        q, k, v = (self._prompts(x) for x in (query, key, value))
        if not self.mask.shape[2]:
            return [(q, k, v, None)]
        own = self._completions(query)
        keys, values = self._before(k, self._completions(key)), self._before(v, self._completions(value))
        bias = torch.zeros_like(self.mask, dtype=query.dtype).masked_fill_(~self.mask, -torch.inf)
        return [(q, k, v, None), (own, keys, values, bias)]

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Prompts (B, H, P, d), and completions (N, H, own, d) if some are fed -> (S, H, d)."""
        return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in parts]).index_select(0, self.unpad)

    def pack_shared(self, parts: Sequence[Tensor]) -> Tensor:
        """Gradients of `operands`' keys or values, (B, H_kv, P, d) and (N, H_kv, P + own, d) -> (S, H_kv, d)."""
        prompts, *rest = parts
        P = prompts.shape[2]
        for both in rest:
            prompts = prompts + both[:, :, :P].reshape(-1, self.group_size, *prompts.shape[1:]).sum(1)
        return self.pack([prompts, *(both[:, :, P:] for both in rest)])

    def pad(self, x: Tensor) -> list[Tensor]:
        """Do the opposite of `pack`, with zeros in the padding."""
        (B, P), (N, own) = self.prompt_places.shape, self.completion_places.shape
        padded = x.new_zeros(B * P + N * own, *x.shape[1:]).index_copy_(0, self.unpad, x)
        prompts, completions = torch.split(padded, [B * P, N * own])
        parts = [prompts.view(B, P, *x.shape[1:])]
        if own:
            parts.append(completions.view(N, own, *x.shape[1:]))
        return [part.transpose(1, 2) for part in parts]

    def _prompts(self, x: Tensor) -> Tensor:
        """(S, H, d) -> (B, H, P, d)."""
        return _take(x, self.prompt_places).transpose(1, 2)

    def _completions(self, x: Tensor) -> Tensor:
        """(S, H, d) -> (N, H, own, d)."""
        return _take(x, self.completion_places).transpose(1, 2)

    def _before(self, prompts: Tensor, own: Tensor) -> Tensor:
        """A prompt before each of its completions: (B, H_kv, P, d), (N, H_kv, own, d) -> (N, H_kv, P + own, d)."""
        return torch.cat([prompts.repeat_interleave(self.group_size, dim=0), own], dim=2)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x[places]: (S, H, d), (B, P) -> (B, P, H, d); the backward pass of an indexing would be eight times slower."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:])
