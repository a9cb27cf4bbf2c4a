"""Which models can be used at all: tried once on a few tokens, instead of kept as a list of names."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hrpo.common.errors import InputError
from hrpo.common.per_model import PerModel
from hrpo.models.base import HybridModel

# Largest root mean square of a difference of logits, over their standard deviation. Two orders of summation differ
# less, even where a rounding sends a token to another expert; an input that is missing differs more.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.3}
PROMPTS = (3, 1)  # lengths; one token follows each
usable: PerModel[list[bool]] = PerModel(list)  # empty until a few tokens have shown it
OF_SOMEBODYS_MODEL = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def check_supported(model: HybridModel) -> None:
    """Refuse a model that cannot be fed latents, or that decodes something else than it reads.

    The first call runs a few tokens in four ways: as token ids, as their embeddings, as means of embeddings, and
    left-padded with a cache that two rows share.

    Raises:
        InputError: names the model's class and why it cannot be used.

    """
    if not usable.of(model):
        reason = _try(model)
        if reason:
            raise InputError("model.name", f"{type(model.bare_lm).__name__} cannot be used: {reason}")
        usable.of(model).append(True)


@torch.no_grad()
def _try(model: HybridModel) -> str:
    """Return why it cannot be used; nothing where it can."""
    lm, width = model.bare_lm, model.embedding.weight.shape[1]
    if lm.get_output_embeddings() is None:
        return "it has no head that predicts tokens"
    hidden = getattr(lm.config.get_text_config(), "hidden_size", width)
    if width != hidden:
        return f"its input embedding is {width} wide and its hidden states {hidden}; latents need them equally wide"
    generator = torch.Generator().manual_seed(0)
    known = min(model.vocab_size, len(model.embedding.weight))
    rows = [torch.randint(known, (1, length + 1), generator=generator).to(model.device) for length in PROMPTS]
    try:
        with model.precision():
            read = torch.cat([lm(input_ids=row, use_cache=False).logits[:, -2:] for row in rows])  # (2, 2, V)
    except OF_SOMEBODYS_MODEL as error:
        return f"it fails on a few tokens in {_dtype(model)}: {_first_line(error)}"
    if read.isnan().any():
        return f"its logits are NaN in {_dtype(model)}; take other weights, or another model.dtype"
    try:
        fed = torch.cat([model(model.embed(row), torch.ones_like(row))[0][:, -2:] for row in rows])
        between = (model.embed(rows[0]) + model.embed(rows[0].flip(1))) / 2  # the embedding of no token
        model(between, torch.ones_like(rows[0]))
    except OF_SOMEBODYS_MODEL as error:
        return f"it fails where it is given embeddings instead of token ids: {_first_line(error)}"
    if not _difference(fed, read) <= TOLERANCE[model.rounding]:
        return "its logits change when it is given embeddings instead of token ids, so it cannot be fed latents"
    return _try_decoding(model, rows, read)


def _try_decoding(model: HybridModel, rows: list[Tensor], read: Tensor) -> str:
    """Prompts padded on the left, their cache repeated for two rows each, one token more: (2, 2, V) as read at once."""
    longest = max(PROMPTS)
    prompts = torch.cat([F.pad(row[:, :-1], (longest - row.shape[1] + 1, 0)) for row in rows])  # (2, P)
    mask = torch.cat([F.pad(torch.ones_like(row), (longest - row.shape[1] + 1, 0)) for row in rows])  # (2, P + 1)
    last = torch.cat([row[:, -1:] for row in rows])  # (2, 1)
    try:
        first, cache = model(model.embed(prompts), mask[:, :-1], last_only=True)  # (2, 1, V)
        if cache is None:
            return "it keeps no keys and values that a completion could go on from"
        cache.batch_repeat_interleave(2)
        twice = model.embed(last).repeat_interleave(2, dim=0)  # (4, 1, D)
        second, cache = model(twice, mask.repeat_interleave(2, dim=0), cache)  # (4, 1, V)
        cache.batch_select_indices(torch.tensor([0, 2], device=model.device))
    except OF_SOMEBODYS_MODEL as error:
        return f"a group's completions cannot share its cache, as of a recurrent state: {_first_line(error)}"
    difference = _difference(torch.cat([first, second[::2]], dim=1), read)
    if difference.isnan():
        return f"its logits are NaN where prompts are padded on the left, in {_dtype(model)}"
    if difference > TOLERANCE[model.rounding]:
        return "its logits change when prompts are padded on the left and completed from a cache"
    return ""


def _dtype(model: HybridModel) -> str:
    return str(model.autocast or model.lm_dtype).removeprefix("torch.")


def _difference(logits: Tensor, expected: Tensor) -> Tensor:
    """Root mean square, over the standard deviation; minus infinity, as padding tokens may have, equals itself."""
    logits, expected = logits.double(), expected.double()
    gap = torch.where(logits == expected, 0.0, logits - expected)
    return gap.square().mean().sqrt() / expected[expected.isfinite()].std()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
