"""Which tokens end a completion: those that a model's files name, and the one that its chat template closes turns with.

Files disagree: a chat model trained from a base model often keeps the base model's generation_config.json, which names
the end of a document, while its tokenizer or its template ends an answer with another token.
"""

import functools
from collections.abc import Sequence
from typing import Any

from hrpo.models.templates import apply_template

ANSWER = "hrpo-answer"  # a text that no template writes by itself
NO_END = (
    "no token is known to end a completion (EOS), so that each runs to its length limit: generation_config.json names "
    "none, nor do the tokenizer and its chat template; set eos_token_id in generation_config.json"
)


def end_tokens(lm: Any, tokenizer: Any) -> list[int]:
    """Return the token ids that end a completion: generation config's, tokenizer's, and the chat template's.

    Args:
        lm: a transformers model.
        tokenizer: None for a model that is driven with token ids alone.

    Returns:
        Each once, the generation config's first; those of the tokenizer that the model has no logits for are left out.

    """
    eos = lm.generation_config.eos_token_id
    named = [] if eos is None else list(eos) if isinstance(eos, Sequence) else [eos]
    if tokenizer is not None:
        known = lm.get_output_embeddings().weight.shape[0]
        own = [tokenizer.eos_token_id, _end_of_turn(tokenizer, str(tokenizer.chat_template))]
        named += [token for token in own if token is not None and token < known]
    return list(dict.fromkeys(named))


@functools.lru_cache(maxsize=4)
def _end_of_turn(tokenizer: Any, template: str) -> int | None:
    """Return the token that the tokenizer's template writes after an answer; None where it writes none there."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "0"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = apply_template(tokenizer, messages)
    except Exception:  # a template is a program: what it raises may be anything, and comes again with the first prompt
        return None
    _, found, after = text.rpartition(ANSWER)
    if not found:
        return None
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    ends = [content for content in added if after.lstrip().startswith(content)]
    return added[max(ends, key=len)] if ends else None
