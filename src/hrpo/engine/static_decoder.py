"""Decoding in steps that can be captured and repeated: the same operations on the same tensors, again and again."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrpo.engine.attention import bind_layout
from hrpo.engine.interface import DecodingKernels
from hrpo.engine.kv import KVLayout
from hrpo.engine.packed_decoder import PackedDecoder

FEWEST_POSITIONS = 256  # of completions that a step attends to; twice as many whenever they are full
PROMPT_STEP = 64  # room for prompts is made for multiples of so many tokens, so that the next batch finds it, too
STEPS = 64  # different ones that there may be in a process
PLACED = ("members", "places", "row", "prompt_length", "age", "prompt_bias")  # what `arrange` works out


class StaticDecoder(PackedDecoder):
    """A `PackedDecoder` whose steps depend on two numbers alone: the rows, and the positions that they attend to.

    All rows have come in together. They are as many as at first, or a power of two: when no more than that are left, as
    many stay, some of which have finished. They attend to a power of two of positions, or to all; a bias that the
    device makes from `age` hides those that are still empty. So few different steps are there, and each can be captured
    once, as a CUDA graph, and repeated: also in the next batches, which sit in the same tensors. Models that look at
    positions on the host, as some long-context RoPEs do, cannot be captured.
    """

    compacts, refills = True, False

    def __init__(
        self, lm: Any, kernels: DecodingKernels, *, prompts: int, longest_prompt: int, max_new_tokens: int
    ) -> None:
        room = -(-longest_prompt // PROMPT_STEP) * PROMPT_STEP
        super().__init__(lm, kernels, prompts=prompts, longest_prompt=room, max_new_tokens=max_new_tokens)
        self.together = False
        bind_layout(lm, self)
        self.forward = self._forward
        if kernels.options.torch_compile:
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(STEPS, limit)
            self.forward = torch.compile(self._forward, fullgraph=True, dynamic=False)
        self.placed: dict[tuple[int, int, int], dict[str, Tensor]] = {}  # for each number of rows, slots and seats

    def fits(self, prompts: int, longest_prompt: int, max_new_tokens: int) -> bool:
        """Whether there is room for such batches, and not much more."""
        room = longest_prompt <= self.longest_prompt <= 2 * longest_prompt + PROMPT_STEP
        return room and (prompts, max_new_tokens) == (self.prompts, self.max_new_tokens)

    def clear(self) -> None:
        """Let all rows go."""
        self.lengths, self.slots, self.ages = [], [], []

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Sequence[int]], group_size: int) -> Tensor:
        """See `Decoder`; all that stood there before is gone."""
        self.clear()
        self.most_rows, self.most_slots, self.least_seats = len(prompts) * group_size, len(prompts), group_size
        return super().admit(prompts, group_size)

    def make_room(self, rows: int, capacity: int) -> None:
        """See `PackedDecoder`."""
        super().make_room(rows, capacity)
        self.kernels.forget_steps()

    def kv(self, layer: int) -> KVLayout | None:
        """Return nothing: PyTorch's operations can be captured, kernels need not be."""
        return None

    @torch.inference_mode()
    def ready(self) -> Hashable:
        """See `Decoder`."""
        age = self.ages[0]
        self.age.fill_(age)
        self.t = min(max(FEWEST_POSITIONS, 1 << age.bit_length()), self.max_new_tokens)
        self.ages = [age + 1] * len(self.ages)
        return len(self.slots), len(self.lengths), self.R, self.t, self.in_order

    @torch.inference_mode()
    def step(self, inputs: Tensor) -> Tensor:
        """See `Decoder`; doing it again changes nothing until the next `ready`."""
        self.own_bias = self.bias(self.age)
        self.hidden, logits = self.forward(inputs, self.prompt_length + self.age)
        return logits

    def _forward(self, inputs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D), (n,) -> hidden states (n, D), logits (n, V)."""
        with self.model.precision():
            out = self.lm.base_model(
                inputs_embeds=inputs.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
            )
            hidden = out.last_hidden_state[0]
            return hidden, self.lm.get_output_embeddings()(hidden)

    def rows_for(self, count: int) -> int:
        """See `Decoder`."""
        return min(self.most_rows, 1 << (count - 1).bit_length()) if count else 0

    def fewest_slots(self, rows: int) -> int:
        """See `PackedDecoder`."""
        return min(self.most_slots, rows)

    def arrange(self) -> None:
        """See `PackedDecoder`; what is worked out goes where it was when the batch had the same numbers."""
        if not self.slots:
            return
        if len(self.slots) > self.rows:
            self.make_room(len(self.slots), self.max_new_tokens)
        super().arrange()
        self.P = self.longest_prompt
        self.prompt_bias = self.bias(torch.tensor(self.lengths, device=self.device) - 1, self.P)
        placed = self.placed.setdefault((len(self.slots), len(self.lengths), self.R), {})
        for name in PLACED:
            kept = placed.setdefault(name, getattr(self, name))
            if kept is not getattr(self, name):
                kept.copy_(getattr(self, name))
                setattr(self, name, kept)
