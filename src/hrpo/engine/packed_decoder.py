"""What a language model computes while decoding: prompts once, then a token a row, rows coming and going.

`PackedDecoder` is the fast one; `PlainDecoder` keeps to the padded batches and the cache of transformers, serves every
architecture, and is what the tests compare with.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.data import left_pad
from hrpo.engine.attention import Layout, run_packed
from hrpo.engine.interface import DecodingKernels, at_least_float32
from hrpo.engine.kv import KVLayout, PromptGroups, zeros
from hrpo.model import HybridCausalLM

FIRST_CAPACITY = 64  # positions of completions that keys and values have room for at first; doubled when full
PREFILL_TOKENS = 8192  # of prompts in one forward


class Decoder(Protocol):
    """Rows of a batch, group_size next to each other for each prompt when they come in.

    hidden: what the head read to give the logits that were returned last, (b or n, D): after the final norm, before
        anything that scales or caps logits.
    """

    hidden: Tensor
    compacts: bool  # whether rows may leave while others are being completed
    refills: bool  # whether prompts may come in then

    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """Compute prompts, each for group_size new rows at the end of the batch; logits of each prompt (b, V)."""

    def ready(self) -> Hashable:
        """Get ready for the next step: what its operations depend on; None where that is ever something else."""

    def step(self, inputs: Tensor) -> Tensor:
        """Feed one input a row: (n, D) -> logits (n, V)."""

    def rows_for(self, count: int) -> int:
        """Return how many rows the batch shrinks to where so many are left."""

    def keep(self, rows: list[int]) -> None:
        """Let row i of the batch be what row rows[i] was; drop the others."""


class PlainDecoder:
    """The model as it is, one batch of left-padded prompts at a time."""

    compacts, refills = True, False

    def __init__(self, model: HybridCausalLM) -> None:
        self.model = model
        self.cache: Any = None

    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """See `Decoder`."""
        ids, mask = left_pad(prompts, 0, self.model.device)  # (B, P)
        self.cache, self.mask = None, mask
        logits = self.run(self.model.embed(ids))
        self.cache.batch_repeat_interleave(group_size)
        self.mask = mask.repeat_interleave(group_size, dim=0)  # (n, P)
        return logits

    def run(self, inputs: Tensor) -> Tensor:
        """Run the model on what follows the cache: (n, S, D) -> logits of the last position (n, V)."""

        def note(_: Any, read: tuple[Tensor]) -> None:
            self.hidden = read[0][:, -1]

        hook = self.model.bare_lm.get_output_embeddings().register_forward_pre_hook(note)
        try:
            logits: Tensor
            logits, self.cache = self.model(inputs, self.mask, self.cache, last_only=True)  # (n, 1, V)
        finally:
            hook.remove()
        return logits[:, -1]

    def ready(self) -> Hashable:
        """See `Decoder`."""
        return None

    def rows_for(self, count: int) -> int:
        """See `Decoder`."""
        return count

    def step(self, inputs: Tensor) -> Tensor:
        """See `Decoder`."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        return self.run(inputs.unsqueeze(1))

    def keep(self, rows: list[int]) -> None:
        """See `Decoder`."""
        if not rows:
            return
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]


class PackedDecoder(Layout):
    """Packed rows: a prompt's keys and values stand once for its group, a completion's are written in place.

    A prompt has a slot, b of them in use, and its rows have seats there, R of them at most. Keys of prompts are (slots,
    H_kv, d, P), of completions (rows, H_kv, d, capacity): the last two axes stand as a score reads them; values have
    them the other way round. A row's scores over both stand side by side before one softmax. Rows and slots stay dense:
    the last ones move into the places of those that leave. All of it is in inference mode: each operation costs less.

    Args:
        lm: a transformers model that attends through layouts, see `use_packed_attention`; its head may be packed.
        kernels: of the model whose copy it is.
        prompts: the most prompts that come in at a time.
        longest_prompt: tokens of the longest prompt to come.
        max_new_tokens: the most tokens of a completion.

    """

    compacts = refills = True
    least_seats = 1  # of a slot

    def __init__(
        self, lm: Any, kernels: DecodingKernels, *, prompts: int, longest_prompt: int, max_new_tokens: int
    ) -> None:
        self.lm, self.kernels, self.device = lm, kernels, kernels.model.device
        self.prompts, self.longest_prompt, self.max_new_tokens = prompts, longest_prompt, max_new_tokens
        self.longest = longest_prompt + max_new_tokens
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values of prompts
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # and of completions
        self.rows, self.capacity = 0, 0  # rows and positions that `own` has room for
        self.lengths: list[int] = []  # of each slot: prompt tokens
        self.slots: list[int] = []  # of each row
        self.ages: list[int] = []  # of each row: completion tokens fed
        self.prefilling: _Prompts | None = None

    @property
    def model(self) -> HybridCausalLM:
        """Whose copy decodes."""
        return self.kernels.model

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """See `Decoder`."""
        last = []
        for part in _by_tokens(prompts, PREFILL_TOKENS):
            ids = torch.tensor([token for prompt in part for token in prompt], device=self.device)
            self.prefilling = _Prompts([len(prompt) for prompt in part], self.device)
            last.append(self.run(self.model.embed(ids), self.prefilling.positions)[self.prefilling.ends])
            self.prefilling = None
            for prompt in part:
                self.slots += [len(self.lengths)] * group_size
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
        self.hidden = hidden
        with self.model.precision():
            logits: Tensor = self.lm.get_output_embeddings()(hidden)
        return logits

    def ready(self) -> Hashable:
        """See `Decoder`."""
        return None

    def rows_for(self, count: int) -> int:
        """See `Decoder`."""
        return count

    @torch.inference_mode()
    def step(self, inputs: Tensor) -> Tensor:
        """See `Decoder`."""
        self.t = max(self.ages) + 1
        if self.t > self.capacity:
            self.make_room(self.rows, min(max(FIRST_CAPACITY, 2 * self.capacity), self.max_new_tokens))
        self.together = min(self.ages) == self.t - 1
        self.own_bias = None if self.together else self.bias(self.age)
        logits = self.compute(inputs)
        self.age += 1
        self.ages = [age + 1 for age in self.ages]
        return logits

    def compute(self, inputs: Tensor) -> Tensor:
        """Run the model at the rows' ages: (n, D) -> logits (n, V)."""
        return self.head(self.run(inputs, self.prompt_length + self.age))

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """See `Decoder`."""
        self.slots, self.ages = [self.slots[row] for row in rows], [self.ages[row] for row in rows]
        self.move(self.own, [(to, row) for to, row in enumerate(rows) if to != row])
        for slot in reversed(range(len(self.lengths))):  # the last slots move into those that are empty
            if slot not in self.slots and len(self.lengths) > self.fewest_slots(len(rows)):
                end = len(self.lengths) - 1
                if slot != end:
                    self.move(self.shared, [(slot, end)])
                    self.lengths[slot] = self.lengths[end]
                    self.slots = [slot if at == end else at for at in self.slots]
                self.lengths.pop()
        self.arrange()

    def fewest_slots(self, rows: int) -> int:
        """Return how many slots stay, used or not, where so many rows do."""
        return 0

    def move(self, store: dict[int, tuple[Tensor, Tensor]], moves: list[tuple[int, int]]) -> None:
        """Copy what stands at some places of a store to others: (to, from) each."""
        if moves:
            to, source = torch.tensor(moves, device=self.device).T
            for tensor in (tensor for pair in store.values() for tensor in pair):
                tensor[to] = tensor[source]

    def arrange(self) -> None:
        """Work out anew who sits where: after rows have come or gone."""
        if not self.slots:
            return
        if len(self.slots) > self.rows:
            self.make_room(len(self.slots), self.capacity)
        members: list[list[int]] = [[] for _ in self.lengths]  # rows of each slot
        for row, slot in enumerate(self.slots):
            members[slot].append(row)
        self.groups = PromptGroups(members, list(self.lengths))
        self.R = max(self.least_seats, *map(len, members))
        self.in_order = self.slots == [row // self.R for row in range(len(members) * self.R)]
        # An empty seat repeats the slot's first row, or any; nobody reads what it gives.
        seated = [row for group in members for row in group + (group or [0])[:1] * (self.R - len(group))]
        places = {row: slot * self.R + seat for slot, group in enumerate(members) for seat, row in enumerate(group)}
        self.members = torch.tensor(seated, device=self.device)  # (b * R,) rows
        self.places = torch.tensor([places[row] for row in range(len(places))], device=self.device)  # (n,) seats
        self.row = torch.arange(len(self.slots), device=self.device)
        self.age = torch.tensor(self.ages, device=self.device)
        lengths = torch.tensor(self.lengths, device=self.device)
        self.prompt_length = lengths[torch.tensor(self.slots, device=self.device)]
        self.P = max(self.lengths)
        self.prompt_bias = None
        if min(self.lengths) < self.P:
            self.prompt_bias = self.bias(lengths - 1, self.P)

    def bias(self, last: Tensor, positions: int | None = None) -> Tensor:
        """0 up to the last position that may be seen, minus infinity beyond, per head: (m,) -> (m * H_kv, 1, t)."""
        keys, _ = next(iter(self.shared.values()))
        beyond = torch.arange(positions or self.t, device=self.device) > last.unsqueeze(1)  # (m, t)
        bias = torch.zeros(beyond.shape, device=self.device, dtype=at_least_float32(keys))
        bias.masked_fill_(beyond, -torch.inf)
        return bias.repeat_interleave(keys.shape[1], dim=0).unsqueeze(1)

    def make_room(self, rows: int, capacity: int) -> None:
        """Give `own` room for so many rows and positions; what stands there stays."""
        for layer, (keys, values) in self.own.items():
            self.own[layer] = (
                _enlarged(keys, rows, *keys.shape[1:3], capacity),
                _enlarged(values, rows, values.shape[1], capacity, values.shape[3]),
            )
        self.rows, self.capacity = rows, capacity

    def kv(self, layer: int) -> KVLayout | None:
        """See `Layout`."""
        if self.prefilling is not None:
            return None
        return KVLayout(self.shared[layer], self.own[layer], self.groups, self.age)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Layout`."""
        if self.prefilling is not None:
            return self.attend_prompts(self.prefilling, layer, query, key, value, scale)
        kv = self.kv(layer)
        served = None if kv is None else self.kernels.attend(query, key, value, kv, scale)
        if served is not None:
            return served
        n, heads = key.shape[:2]
        b, P = len(self.lengths), self.P
        prompt_keys, prompt_values = self.shared[layer]
        prompt_keys, prompt_values = prompt_keys[:b, ..., :P].flatten(0, 1), prompt_values[:b, :, :P].flatten(0, 1)
        own_keys, own_values = (x.flatten(0, 1) for x in self.write(layer, key, value))  # (n * H_kv, ...)

        q = query.view(n, heads, -1, query.shape[2])  # (n, H_kv, per, d)
        scores = self.kernels.scores
        on_prompt = self.by_row(scores(self.by_slot(q), prompt_keys, self.prompt_bias, scale), heads)
        on_own = scores(q.flatten(0, 1), own_keys, self.own_bias, scale)  # (n * H_kv, per, t)
        both = torch.cat([on_prompt, on_own.view(*on_prompt.shape[:-1], -1)], dim=-1)  # (..., H_kv, per, P + t)
        weights = torch.softmax(both, dim=-1).to(value.dtype).view(n, heads, -1, both.shape[-1])
        out = self.by_row(torch.bmm(self.by_slot(weights[..., :P]), prompt_values), heads)  # (..., H_kv, per, d_v)
        out = torch.baddbmm(out.reshape(n * heads, *out.shape[-2:]), weights[..., P:].flatten(0, 1), own_values)
        return out.view(n, query.shape[1], -1)

    def by_slot(self, x: Tensor) -> Tensor:
        """Put the rows of a slot together: (n, H_kv, per, m) -> (b * H_kv, R * per, m)."""
        seats = x if self.in_order else x[self.members]
        return seats.view(-1, self.R, *x.shape[1:]).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def by_row(self, x: Tensor, heads: int) -> Tensor:
        """The other way round: (b * H_kv, R * per, m) -> (n, H_kv, per, m); (b, R, H_kv, per, m) of rows in order."""
        seats = x.view(-1, heads, self.R, x.shape[1] // self.R, x.shape[2]).transpose(1, 2)
        return seats if self.in_order else seats.flatten(0, 1)[self.places]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write each row's key and value, (n, H_kv, d) each, where they belong; return all that may be seen."""
        n, t = len(key), self.t
        keys, values = self.own[layer]
        if self.together:
            keys[:n, ..., t - 1] = key
            values[:n, :, t - 1] = value
        else:
            keys[self.row, ..., self.age] = key
            values[self.row, :, self.age] = value
        return keys[:n, ..., :t], values[:n, :, :t]

    def attend_prompts(
        self, prompts: "_Prompts", layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Prompts attend to themselves, and leave their keys and values."""
        q, k, v = (x[prompts.places].transpose(1, 2) for x in (query, key, value))  # (b, heads, P, d)
        heads, d, d_v = k.shape[1], k.shape[3], v.shape[3]
        if layer not in self.shared:
            slots, P = self.prompts, self.longest_prompt
            self.shared[layer] = (zeros(k, slots, heads, d, P), zeros(v, slots, heads, P, d_v))
            self.own[layer] = (zeros(k, 0, heads, d, 0), zeros(v, 0, heads, 0, d_v))
        taken, count = len(self.lengths), len(q)
        if taken + count > len(self.shared[layer][0]):  # rows of many prompts are left, one or two of each
            keys, values = (_enlarged(x, 2 * len(x), *x.shape[1:]) for x in self.shared[layer])
            self.shared[layer] = (keys, values)
        keys, values = (x[taken : taken + count] for x in self.shared[layer])
        keys[..., : k.shape[2]], values[:, :, : v.shape[2]] = k.transpose(2, 3), v
        out = self.kernels.sdpa(q, k, v, scale)
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


def _enlarged(x: Tensor, *shape: int) -> Tensor:
    """Return zeros that have x in their first corner."""
    room = zeros(x, *shape)
    room[tuple(slice(size) for size in x.shape)] = x
    return room
