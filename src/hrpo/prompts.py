"""Conversations to token ids and completions to text."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hrpo.errors import InputError
from hrpo.rollout import Rollout
from hrpo.tasks.task import Message


def encode(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Return the token ids of each conversation, up to where the model is to answer.

    Raises:
        InputError: the model has no tokenizer, or its tokenizer no chat template.

    """
    if tokenizer is None:
        raise InputError("model.name: this model has no tokenizer, so text cannot be turned into tokens")
    if tokenizer.chat_template is None:
        raise InputError("model.name: the tokenizer of this model has no chat template; use an instruction-tuned model")
    return [
        tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        for messages in conversations
    ]


def decode(tokenizer: Any, rollout: Rollout) -> list[str]:
    """Return the text of each completion, special tokens left out."""
    rows: list[Tensor] = [ids[:n] for ids, n in zip(rollout.completion_ids, rollout.lengths.tolist(), strict=True)]
    texts: list[str] = tokenizer.decode([row.tolist() for row in rows], skip_special_tokens=True)
    return texts
