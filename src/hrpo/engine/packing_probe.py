"""Which models can run packed: tried once on a few tokens, instead of kept as a list of names."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hrpo.common.per_model import PerModel
from hrpo.engine.attention import NotPackableError, packed_attention, run_packed
from hrpo.engine.layers import linear_layers
from hrpo.engine.packing import PackedGroups
from hrpo.model import HybridCausalLM

ANY_LENGTH = 2**40
# Largest difference of logits, over their standard deviation. Two orders of summation differ less, a position or a
# neighbour mistaken for another differs more.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.2}
PROMPTS, COMPLETIONS = (2, 1), (3, 1, 2, 4)  # lengths, in groups of two; short, for short windows
log = logging.getLogger("hrpo")


@dataclass
class Found:
    """What trying a model has shown: see `packs_up_to` (None: not tried yet) and `read_together`."""

    packs_up_to: int | None = None
    read_together: list[list[str]] = field(default_factory=list)


found_on: PerModel[Found] = PerModel(Found)


def packs_up_to(model: HybridCausalLM) -> int:
    """Return the tokens of the longest sequence that packing serves; 0 where the model needs the plain path.

    The first call runs a few tokens packed and plain and compares; where they differ it says so, once.
    """
    found = found_on.of(model)
    if found.packs_up_to is None:
        found.packs_up_to, reason = _try(model)
        if reason:
            limit = f"sequences above {found.packs_up_to} tokens take" if found.packs_up_to else "it takes"
            log.warning("%s: %s the plain path: %s", type(model.bare_lm).__name__, limit, reason)
    return found.packs_up_to


def read_together(model: HybridCausalLM) -> list[list[str]]:
    """Return names of linear layers that read the same tensor, as queries, keys and values do; known once it packs."""
    return found_on.of(model).read_together


@torch.no_grad()
def _try(model: HybridCausalLM) -> tuple[int, str]:
    """Return the longest sequence and why there is a limit."""
    device = model.device
    lengths = [torch.arange(max(part)) < torch.tensor(part).unsqueeze(1) for part in (PROMPTS, COMPLETIONS)]
    layout = _Once(lengths[0].to(device), lengths[1].to(device), group_size=2)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.vocab_size, layout.positions.shape, generator=generator).to(device)
    limit, reason = ANY_LENGTH, ""
    while True:
        layout.longest, layout.attended = limit, set()
        try:
            packed = _packed_logits(model, ids, layout)
            _check_head(model, ids)
            break
        except NotPackableError as error:
            limit, reason = error.window, str(error)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # of somebody's model
            limit, reason = 0, f"{type(error).__name__}: {error}".split("\n")[0]
        if limit == 0:
            return 0, reason
    plain = _plain_logits(model, ids)
    gap = torch.where(packed == plain, 0.0, packed - plain)  # some heads give minus infinity for tokens never to write
    difference = (gap.abs().max() / plain[plain.isfinite()].std()).item()
    if not difference <= TOLERANCE[model.rounding]:
        return 0, f"packed logits differ by {difference:.1g} of their standard deviation"
    return limit, reason


class _Once(PackedGroups):
    """Decoding keeps one set of keys and values a layer."""

    attended: set[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `PackedGroups`."""
        if layer in self.attended:
            raise NotPackableError("it attends more than once in a layer")
        self.attended.add(layer)
        return super().attend(layer, query, key, value, scale)


def _check_head(model: HybridCausalLM, ids: Tensor) -> None:
    """Refuse logits that are not what the head gives, to the bit: a cap at 30 hardly shows in a few tokens' logits."""
    head, seen = model.bare_lm.get_output_embeddings(), []
    if not isinstance(head, nn.Linear):
        raise NotPackableError("its head is no linear layer")
    hook = head.register_forward_hook(lambda _, inputs, out: seen.append(out))
    try:
        logits, _ = model(model.embed(ids).unsqueeze(0), torch.ones_like(ids).unsqueeze(0))
    finally:
        hook.remove()
    if not torch.equal(seen[-1].double(), logits.double()):
        raise NotPackableError("its logits are scaled or capped after the head")


def _packed_logits(model: HybridCausalLM, ids: Tensor, layout: PackedGroups) -> Tensor:
    """Logits of the completions' tokens: (n, V)."""
    lm: Any = model.bare_lm
    with model.precision(), packed_attention(lm), _readers(lm) as readers:
        hidden = run_packed(lm, model.embed(ids), layout.positions, layout)
        logits: Tensor = lm.get_output_embeddings()(hidden[layout.predicts_from])
    found_on.of(model).read_together = [names for _, names in readers if len(names) > 1]
    return logits.double()


@contextlib.contextmanager
def _readers(lm: Any) -> Iterator[list[tuple[Tensor, list[str]]]]:
    """Within it, note which linear layers read the same tensor: queries, keys and values, for instance."""
    readers: list[tuple[Tensor, list[str]]] = []

    def note(x: Tensor, name: str) -> None:
        for tensor, names in readers:
            if tensor is x:
                names.append(name)
                return
        readers.append((x, [name]))

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(inputs[0], name))
        for name, layer in linear_layers(lm)
    ]
    try:
        yield readers
    finally:
        for hook in hooks:
            hook.remove()


def _plain_logits(model: HybridCausalLM, ids: Tensor) -> Tensor:
    """The same, one sequence after the other."""
    parts = torch.split(ids, [*PROMPTS, *(length - 1 for length in COMPLETIONS)])
    rows = []
    for n, completion in enumerate(parts[len(PROMPTS) :]):
        prompt = parts[n // 2]
        embeds = model.embed(torch.cat([prompt, completion])).unsqueeze(0)
        logits, _ = model(embeds, torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device))
        rows.append(logits[0, len(prompt) - 1 :])
    return torch.cat(rows).double()
