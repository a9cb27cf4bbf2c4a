"""Conversations to token ids and completions to text."""

import functools
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from hrpo.errors import InputError
from hrpo.rollout import Rollout
from hrpo.tasks.task import HALF, Message
from hrpo.templates import apply_template

SENTINEL = "hrpo-sentinel"  # a system text that no template writes by itself


def encode(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Return the token ids of each conversation, up to where the model is to answer.

    With a chat template as the template has it; where that has no place for a system text, the first user turn begins
    with it. Without one as plain text, the way few-shot prompts are written: turns between blank lines, an answer on
    the line below its question. Where the tokenizer begins texts with BOS, a prompt begins with exactly one.

    Raises:
        InputError: the model has no tokenizer, or its chat template refuses the conversation, or a message is no text.

    """
    if tokenizer is None:
        raise InputError(
            "model.name: this model has no tokenizer; put its tokenizer.json and tokenizer_config.json there"
        )
    texts = [render(tokenizer, messages) for messages in conversations]
    for text in texts:
        if not text.isascii() and HALF.search(text):
            raise InputError(
                f"prompts: {text[-60:]!a} is no text: half of a surrogate pair; save what it is from as UTF-8"
            )
    return [_ids(tokenizer, text) for text in texts]


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return a conversation as text, up to where the model is to answer; see `encode`."""
    template = tokenizer.chat_template
    if template is None:
        return _plain(messages)
    try:
        if not _has_system_role(tokenizer, str(template)):
            messages = _without_system(messages)
        return _apply(tokenizer, messages)
    except Exception as error:  # a template is a program: what it raises may be anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise InputError(
            f"model.name: the chat template of this model refuses the conversation: {reason}; mend chat_template.jinja"
        ) from error


def decode(tokenizer: Any, rollout: Rollout) -> list[str]:
    """Return the text of each completion, special tokens left out."""
    texts: list[str] = tokenizer.decode(id_lists(rollout), skip_special_tokens=True)
    return texts


def id_lists(rollout: Rollout) -> list[list[int]]:
    """Return the token ids of each completion, EOS included."""
    rows = zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True)
    return [ids[:n] for ids, n in rows]


def _apply(tokenizer: Any, messages: Sequence[Message]) -> str:
    return apply_template(tokenizer, messages, add_generation_prompt=True)


@functools.lru_cache(maxsize=4)
def _has_system_role(tokenizer: Any, template: str) -> bool:
    """Whether a system text shows in what the tokenizer's template makes: some raise an error, some leave it out."""
    try:
        text = _apply(tokenizer, [{"role": "system", "content": SENTINEL}, {"role": "user", "content": "0"}])
    except TemplateError:  # other errors are no answer, and come again with the conversation itself
        return False
    return SENTINEL in text


def _without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """Let the first user turn begin with the system text, if there is one, and a blank line."""
    system, *turns = messages
    if system["role"] != "system":
        return messages
    question, *rest = turns
    return [{**question, "content": f"{system['content']}\n\n{question['content']}"}, *rest]


def _plain(messages: Sequence[Message]) -> str:
    ends = {"system": "\n\n", "user": "\n", "assistant": "\n\n"}
    return "".join(message["content"] + ends[message["role"]] for message in messages)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, after the special tokens that the tokenizer begins texts with, unless the text does so."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    marked: list[int] = tokenizer.encode(text)  # it may end with EOS too, which no prompt may
    starts = (start for start in range(len(marked)) if marked[start : start + len(ids)] == ids)
    before = marked[: next(starts, 0)]
    return ids if ids[: len(before)] == before else before + ids
