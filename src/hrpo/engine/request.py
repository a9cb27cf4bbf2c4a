"""Whether a request to decode can be served: arguments in their ranges, within the model's context and memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrpo.common.errors import InputError
from hrpo.common.memory import total_memory
from hrpo.data import SHOWN_CANDIDATES, SamplingParams
from hrpo.latent import LatentMode
from hrpo.model import HybridCausalLM
from hrpo.models.compat import check_supported
from hrpo.models.context import context_of, context_text


def check_request(
    model: HybridCausalLM,
    prompt_ids: Sequence[Sequence[int]],
    group_size: int,
    sampling: SamplingParams,
    mode: LatentMode,
    sample_keys: Sequence[int] | None,
    forced_ids: Tensor | None,
) -> None:
    """Refuse what cannot be decoded; the arguments are those of `hrpo.generate`.

    Raises:
        ValueError: an argument outside its range.
        InputError: the model cannot be used, or the request is beyond its context or beyond memory.

    """
    check_supported(model)
    if not prompt_ids or not all(len(row) for row in prompt_ids):
        raise ValueError("prompt_ids: every prompt needs at least one token")
    embedded = len(model.embedding.weight)
    if (largest := max(map(max, prompt_ids))) >= embedded:
        raise InputError(
            "model.name",
            f"a prompt has the token {largest}, but the model knows {embedded}: its tokenizer is another model's",
            "put its own into the folder",
        )
    sampling.check()
    if group_size < 1:
        raise ValueError(f"group_size: must be at least 1, got {group_size}")
    T = sampling.max_new_tokens
    if T is None or T < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {T}")
    longest, context = max(map(len, prompt_ids)), context_of(model.bare_lm.config)
    if context is not None and longest + T > context:
        raise InputError(
            "max_new_tokens",
            f"{T} after a prompt of {longest} leave the model's {context_text(model.bare_lm.config)}",
            "lower it",
        )
    N = len(prompt_ids) * group_size
    check_memory(model, mode, N, T, sampling.top_k)
    if forced_ids is not None and forced_ids.shape[0] != N:
        raise ValueError(f"forced_ids: {N} completions need as many rows, got {forced_ids.shape[0]}")
    if sample_keys is not None and len(sample_keys) != N:
        raise ValueError(f"sample_keys: {N} completions need as many keys, got {len(sample_keys)}")


def check_memory(model: HybridCausalLM, mode: LatentMode, completions: int, max_new_tokens: int, top_k: int) -> None:
    """Refuse more completions than there is memory for what a `Rollout` keeps of them.

    Raises:
        InputError: names the completions and the memory.

    """
    real = 8 if model.lm_dtype == torch.float64 else 4
    shown, stores = stored_candidates(mode, min(top_k, model.vocab_size), model.vocab_size)
    each = shown * (4 + real) + 3 * real + 17 + stores * model.gate.hidden_size * real  # bytes of a token
    needed, there = completions * max_new_tokens * each, total_memory(model.device)
    if needed > there:
        raise InputError(
            "group_size",
            f"{completions:,} completions of up to {max_new_tokens:,} tokens keep "
            f"{needed / 1000000000.0:,.0f} GB, and there are {there / 1000000000.0:,.0f} GB",
            "lower it, the prompts or max_new_tokens",
        )


def stored_candidates(mode: LatentMode, K: int, V: int) -> tuple[int, bool]:
    """Return how many candidates of a token are kept, and whether the latents are, instead of all candidates."""
    stores = mode.thinks and (not K or mode.stores)
    return min(SHOWN_CANDIDATES, K or V) if stores or not K else K, stores
