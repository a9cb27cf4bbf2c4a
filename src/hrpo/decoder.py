"""What a language model computes while decoding: prompts once, then a token a row, rows coming and going.

`SharedDecoder` is the fast one; `PlainDecoder` keeps to the padded batches and the cache of transformers, serves every
architecture, and is what the tests compare with.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.attention import run_packed, use_packed_attention
from hrpo.copies import decoding_copy
from hrpo.model import HybridCausalLM
from hrpo.packable import packs_up_to
from hrpo.techniques import Techniques

FIRST_CAPACITY = 64  # positions of completions that keys and values have room for at first; doubled when full
PREFILL_TOKENS = 8192  # of prompts in one forward


class Decoder(Protocol):
    """Rows of a batch, group_size next to each other for each prompt when they come in."""

    refills: bool  # whether prompts may come in while others are being completed

    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """Compute prompts, each for group_size new rows at the end of the batch; logits of each prompt (b, V)."""

    def step(self, inputs: Tensor) -> Tensor:
        """Feed one input a row: (n, D) -> logits (n, V)."""

    def keep(self, rows: list[int]) -> None:
        """Let row i of the batch be what row rows[i] was; drop the others."""


def make_decoder(
    model: HybridCausalLM,
    techniques: Techniques,
    *,
    prompts: int,
    longest_prompt: int,
    max_new_tokens: int,
) -> Decoder:
    """Return the fast decoder where it serves the model, the plain one elsewhere.

    Args:
        model: what decodes; its weights must not change while the decoder is used.
        techniques: which to use.
        prompts: the most prompts at a time.
        longest_prompt: tokens of the longest prompt to come.
        max_new_tokens: the most tokens of a completion.

    """
    if not techniques.packed_groups or longest_prompt + max_new_tokens > packs_up_to(model):
        return PlainDecoder(model)
    lm = decoding_copy(model, techniques)
    use_packed_attention(lm)
    return SharedDecoder(
        lm,
        model,
        prompts=prompts,
        longest_prompt=longest_prompt,
        max_new_tokens=max_new_tokens,
    )


class PlainDecoder:
    """The model as it is, one batch of left-padded prompts at a time."""

    refills = False

    def __init__(self, model: HybridCausalLM) -> None:
        self.model = model
        self.cache: Any = None

    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """See `Decoder`."""
        ids, mask = left_pad(prompts, 0, self.model.device)  # (B, P)
        logits: Tensor
        logits, self.cache = self.model(self.model.embed(ids), mask, last_only=True)  # (B, 1, V)
        self.cache.batch_repeat_interleave(group_size)
        self.mask = mask.repeat_interleave(group_size, dim=0)  # (n, P)
        return logits[:, -1]

    def step(self, inputs: Tensor) -> Tensor:
        """See `Decoder`."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        logits: Tensor
        logits, self.cache = self.model(inputs.unsqueeze(1), self.mask, self.cache)  # (n, 1, V)
        return logits[:, -1]

    def keep(self, rows: list[int]) -> None:
        """See `Decoder`."""
        if not rows:
            return
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]


class SharedDecoder:
    """Packed rows: a prompt's keys and values stand once for its group, a completion's are written in place.

    A prompt has a slot, b of them in use, and each of its rows a seat there, R of them at most: keys and values of
    prompts are (slots, H_kv, P, d), of completions (slots, H_kv, R, capacity, d). A row's scores over both stand side
    by side before one softmax. Slots and seats stay dense: the last ones move into the places of those that leave.

    Args:
        lm: a transformers model that attends through layouts, see `use_packed_attention`; its head may be packed.
        model: whose copy it is.
        prompts: the most prompts at a time.
        longest_prompt: tokens of the longest prompt to come.
        max_new_tokens: the most tokens of a completion.

    """

    refills = True

    def __init__(
        self, lm: Any, model: HybridCausalLM, *, prompts: int, longest_prompt: int, max_new_tokens: int
    ) -> None:
        self.lm, self.model, self.device = lm, model, model.device
        self.max_slots, self.longest_prompt, self.max_new_tokens = prompts, longest_prompt, max_new_tokens
        self.longest = longest_prompt + max_new_tokens
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values of prompts
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # and of completions
        self.capacity, self.R = 0, 0  # positions and seats that `own` has room for
        self.lengths: list[int] = []  # of each slot: prompt tokens
        self.seats: list[tuple[int, int]] = []  # of each row: slot and seat
        self.ages: list[int] = []  # of each row: completion tokens fed
        self.prefilling: _Prompts | None = None

    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """See `Decoder`."""
        last = []
        for part in _by_tokens(prompts, PREFILL_TOKENS):
            ids = torch.tensor([token for prompt in part for token in prompt], device=self.device)
            self.prefilling = _Prompts([len(prompt) for prompt in part], self.device)
            last.append(self.run(self.model.embed(ids), self.prefilling.positions)[self.prefilling.ends])
            self.prefilling = None
            for prompt in part:
                self.seats += [(len(self.lengths), seat) for seat in range(group_size)]
                self.ages += [0] * group_size
                self.lengths.append(len(prompt))
        self.arrange()
        return self.head(torch.cat(last))

    def run(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Run the blocks: (S, D), (S,) -> hidden states (S, D)."""
        with self.model.precision():
            return run_packed(self.lm, inputs, positions, self)

    def head(self, hidden: Tensor) -> Tensor:
        """(n, D) -> logits (n, V)."""
        with self.model.precision():
            logits: Tensor = self.lm.get_output_embeddings()(hidden)
        return logits

    def step(self, inputs: Tensor) -> Tensor:
        """See `Decoder`."""
        self.t = max(self.ages) + 1
        if self.t > self.capacity:
            self.make_room(min(max(FIRST_CAPACITY, 2 * self.capacity), self.max_new_tokens), self.R)
        self.own_bias = None
        if self.ages.count(self.t - 1) < len(self.ages):
            beyond = torch.arange(self.t, device=self.device) > self.age[self.members].unsqueeze(2)  # (b, R, t)
            self.own_bias = self.bias(beyond.unsqueeze(1)).flatten(0, 2)  # (b * H_kv * R, 1, t)
        hidden = self.run(inputs, self.prompt_length + self.age)  # (n, D)
        self.ages = [age + 1 for age in self.ages]
        self.age += 1
        return self.head(hidden)

    def keep(self, rows: list[int]) -> None:
        """See `Decoder`."""
        self.seats, self.ages = [self.seats[row] for row in rows], [self.ages[row] for row in rows]
        members = self.by_slot()
        moves = []
        for slot, group in enumerate(members):  # the last seats move into those that are free
            free = sorted(set(range(len(group))) - {self.seats[row][1] for row in group})
            for row in group:
                if self.seats[row][1] >= len(group):
                    moves.append((slot, self.seats[row][1], free[0]))
                    self.seats[row] = (slot, free.pop(0))
        if moves:
            at, source, to = torch.tensor(moves, device=self.device).T
            for tensor in (tensor for pair in self.own.values() for tensor in pair):
                tensor[at, :, to] = tensor[at, :, source]
        for slot in reversed(range(len(members))):  # and the last slots into those that are empty
            if members[slot]:
                continue
            end = len(self.lengths) - 1
            if slot != end:
                for tensor in (
                    tensor for store in (self.shared, self.own) for pair in store.values() for tensor in pair
                ):
                    tensor[slot] = tensor[end]
                self.lengths[slot] = self.lengths[end]
                self.seats = [(slot, seat) if at == end else (at, seat) for at, seat in self.seats]
            self.lengths.pop()
        self.arrange()

    def by_slot(self) -> list[list[int]]:
        """Rows of each slot."""
        members: list[list[int]] = [[] for _ in self.lengths]
        for row, (slot, _) in enumerate(self.seats):
            members[slot].append(row)
        return members

    def arrange(self) -> None:
        """Work out anew who sits where: after rows have come or gone."""
        if not self.seats:
            return
        members = self.by_slot()
        R = max(map(len, members))
        if R != self.R:
            self.make_room(self.capacity, R)
        seated = [[0] * R for _ in members]  # an empty seat repeats a row; nobody reads what it gives
        for row, (slot, seat) in enumerate(self.seats):
            seated[slot][seat] = row
        self.members = torch.tensor(seated, device=self.device)  # (b, R)
        self.slot, self.seat = torch.tensor(self.seats, device=self.device).T  # (n,) each
        self.in_order = self.seats == [divmod(row, R) for row in range(len(members) * R)]
        self.age = torch.tensor(self.ages, device=self.device)
        lengths = torch.tensor(self.lengths, device=self.device)
        self.prompt_length = lengths[self.slot]
        self.P = max(self.lengths)
        self.prompt_bias = None
        if min(self.lengths) < self.P:
            beyond = torch.arange(self.P, device=self.device) >= lengths.unsqueeze(1)  # (b, P)
            self.prompt_bias = self.bias(beyond.unsqueeze(1)).flatten(0, 1)  # (b * H_kv, 1, P)

    def bias(self, beyond: Tensor) -> Tensor:
        """0, or minus infinity where nothing may be seen, for each head: (b, 1, ..., t) -> (b, H_kv, ..., 1, t)."""
        keys, _ = next(iter(self.shared.values()))
        bias = torch.zeros(beyond.shape, device=self.device, dtype=keys.dtype).masked_fill_(beyond, -torch.inf)
        return bias.repeat_interleave(keys.shape[1], dim=1).unsqueeze(-2)

    def make_room(self, capacity: int, seats: int) -> None:
        """Give `own` room for so many positions and seats; what stands there stays."""
        for layer, pair in self.own.items():
            rooms = []
            for tensor in pair:
                slots, heads, R, t, d = tensor.shape
                room = tensor.new_zeros(slots, heads, seats, capacity, d)
                both = min(R, seats)
                room[:, :, :both, : min(t, capacity)] = tensor[:, :, :both, :capacity]
                rooms.append(room)
            self.own[layer] = (rooms[0], rooms[1])
        self.capacity, self.R = capacity, seats

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Layout`."""
        if self.prefilling is not None:
            return self.attend_prompts(self.prefilling, layer, query, key, value, scale)
        H, d = query.shape[1:]
        b, heads, R, t, P = len(self.lengths), key.shape[1], self.R, self.t, self.P
        per = H // heads
        own_keys, own_values = (
            self.write(room, x)[:b].flatten(0, 2)[:, :t] for room, x in zip(self.own[layer], (key, value), strict=True)
        )  # (b * H_kv * R, t, d)
        prompt_keys, prompt_values = (x[:b].flatten(0, 1)[:, :P] for x in self.shared[layer])  # (b * H_kv, P, d)

        q = (query if self.in_order else query[self.members.flatten()]) * scale
        q = q.view(b, R, heads, per, d).transpose(1, 2)  # (b, H_kv, R, per, d)
        on_prompt = _scores(q.reshape(b * heads, R * per, d), prompt_keys, self.prompt_bias)
        on_own = _scores(q.reshape(b * heads * R, per, d), own_keys, self.own_bias)
        scores = torch.cat([on_prompt.view(-1, per, P), on_own], dim=2)  # (b * H_kv * R, per, P + t)
        real = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=2, dtype=real).to(value.dtype)
        out = torch.bmm(weights[..., :P].reshape(b * heads, R * per, P), prompt_values)
        out = torch.baddbmm(out.view(-1, per, out.shape[2]), weights[..., P:], own_values)
        out = out.view(b, heads, R, per, -1).transpose(1, 2).reshape(b * R, H, -1)
        return out if self.in_order else out[self.slot * R + self.seat]

    def write(self, room: Tensor, x: Tensor) -> Tensor:
        """Write each row's key or value, (n, H_kv, d), where it belongs."""
        if self.in_order and self.own_bias is None:  # all rows are at the same position
            room[: len(self.lengths), :, :, self.t - 1] = x.view(-1, self.R, *x.shape[1:]).transpose(1, 2)
        else:
            room[self.slot, :, self.seat, self.age] = x
        return room

    def attend_prompts(
        self, prompts: "_Prompts", layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Prompts attend to themselves, and leave their keys and values."""
        q, k, v = (x[prompts.places].transpose(1, 2) for x in (query, key, value))  # (b, heads, P, d)
        if layer not in self.shared:
            empty = [x.new_zeros(self.max_slots, x.shape[1], self.longest_prompt, x.shape[3]) for x in (k, v)]
            self.shared[layer] = (empty[0], empty[1])
            nobody = [x.new_zeros(self.max_slots, x.shape[1], 0, 0, x.shape[3]) for x in (k, v)]
            self.own[layer] = (nobody[0], nobody[1])
        at = len(self.lengths)
        for store, x in zip(self.shared[layer], (k, v), strict=True):
            store[at : at + x.shape[0], :, : x.shape[2]] = x
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)[prompts.unpad]


class _Prompts:
    """Prompts end to end: their positions (S,), last places (b,), and where each stands when padded."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        length = torch.tensor(lengths, device=device)
        steps = torch.arange(max(lengths), device=device)
        valid = steps < length.unsqueeze(1)  # (b, P)
        starts = length.cumsum(0) - length
        self.ends = starts + length - 1
        self.positions = steps.expand_as(valid)[valid]
        self.places = starts.unsqueeze(1) + torch.where(valid, steps, 0)  # (b, P)
        self.unpad = valid.flatten().nonzero().squeeze(1)


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (B, P) each, of rows of token ids."""
    P = max(map(len, rows))
    ids = torch.tensor([[pad] * (P - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (P - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _by_tokens(prompts: Sequence[Sequence[int]], budget: int) -> list[list[Sequence[int]]]:
    """Cut a list of prompts into parts of at most so many tokens, at least one prompt each."""
    parts: list[list[Sequence[int]]] = []
    room = 0
    for prompt in prompts:
        if len(prompt) > room:
            parts.append([])
            room = budget
        parts[-1].append(prompt)
        room -= len(prompt)
    return parts


def _scores(q: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    keys = keys.transpose(1, 2)
    return torch.bmm(q, keys) if bias is None else torch.baddbmm(bias, q, keys)
