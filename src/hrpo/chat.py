"""Conversations to token ids and completions to text.

What messages say is text, whatever stands in it: only the chat template writes control tokens.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

from hrpo.common.errors import InputError
from hrpo.data import Rollout
from hrpo.models.templates import apply_template
from hrpo.tasks.base import HALF, Message

SENTINEL = "hrpo-sentinel"  # in a message that no template writes by itself
CUT = "\ufdd0"  # a noncharacter, in no text: put into the name of a control token, so that it is encoded as text
MEND = "mend chat_template.jinja, or remove it to ask in plain text"


def encode(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Return the token ids of each conversation, up to where the model is to answer.

    With a chat template as the template has it; where that has no place for a system text, the first user turn begins
    with it. Without one as plain text, the way few-shot prompts are written: turns between blank lines, an answer on
    the line below its question. Where the tokenizer begins texts with BOS, a prompt begins with exactly one. The name
    of a control token in a message, such as `<|im_end|>`, is encoded as the text that it is.

    A conversation that ends with the assistant's turn is encoded whole, as the template ends it.

    Raises:
        InputError: the model has no tokenizer, or its chat template refuses the conversation or leaves out some of it,
            or a message is no text.

    """
    if tokenizer is None:
        raise InputError(
            "model.name", "this model has no tokenizer", "put its tokenizer.json and tokenizer_config.json there"
        )
    return [_ids(tokenizer, render(tokenizer, messages)) for messages in conversations]


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return a conversation as text, see `encode`, with `CUT` in the names of control tokens that messages hold."""
    for message in messages:
        if not message["content"].isascii() and HALF.search(message["content"]):
            end = message["content"][-60:]
            raise InputError(
                "prompts", f"{end!a} is no text: half of a surrogate pair", "save what it is from as UTF-8"
            )
    messages = [{**message, "content": message["content"].replace(CUT, "")} for message in messages]
    roles = tuple(message["role"] for message in messages)
    try:
        messages = _with_places(tokenizer, messages, roles)
        text = cut_names(functools.partial(_apply, tokenizer), messages, control_names(tokenizer, roles))
        arrived = _squeezed(text.replace(CUT, ""))
        _refuse_lost(messages, [i for i, said in enumerate(messages) if _squeezed(said["content"]) not in arrived])
        return text
    except InputError:
        raise
    except Exception as error:  # a template is a program: what it raises may be anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise InputError(
            "model.name",
            f"the chat template of this model refuses the conversation: {reason}",
            "mend chat_template.jinja",
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
    """Return a conversation as the chat template has it, or as plain text, up to where the model is to go on."""
    if tokenizer.chat_template is None:
        ends = {"system": "\n\n", "user": "\n", "assistant": "\n\n"}
        text = "".join(message["content"] + ends[message["role"]] for message in messages)
        return text.removesuffix("\n\n") if messages[-1]["role"] == "assistant" else text
    to_go_on = messages[-1]["role"] != "assistant"
    return apply_template(tokenizer, messages, add_generation_prompt=to_go_on)


# ---- what arrives ----------------------------------------------------------------------------------------------------


def _with_places(tokenizer: Any, messages: Sequence[Message], roles: tuple[str, ...]) -> Sequence[Message]:
    """Return messages that all have a place in the chat template: the system text may go into the first user turn."""
    skeleton = _skeleton(tokenizer, str(tokenizer.chat_template), roles)
    if skeleton is None and roles[0] != "system":
        return messages  # the error comes again with the conversation itself
    if skeleton is None:
        return _with_places(tokenizer, _without_system(messages), roles[1:])
    lost = [i for i in range(len(roles)) if _sentinel(i) not in skeleton]
    if roles[0] == "system" and 0 in lost:
        messages, lost = _without_system(messages), [i - 1 for i in lost[1:]]
    _refuse_lost(messages, lost)
    return messages


@functools.lru_cache(maxsize=16)
def _skeleton(tokenizer: Any, template: str, roles: tuple[str, ...]) -> str | None:
    """Return what the tokenizer's template makes of a conversation in these roles, a sentinel for what each says.

    None where it raises an error, as some do at a system text.
    """
    try:
        return _apply(tokenizer, [{"role": role, "content": _sentinel(i)} for i, role in enumerate(roles)])
    except TemplateError:  # other errors are no answer, and come again with the conversation itself
        return None


def _sentinel(place: int) -> str:
    return f"{SENTINEL}-{place}."


def _refuse_lost(messages: Sequence[Message], lost: Sequence[int]) -> None:
    """Raise an InputError where some messages, by their places, do not arrive in what the model reads."""
    if not lost:
        return
    names = dict.fromkeys(range(len(messages)), "the worked examples")
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    names |= {asked: "the question"} | ({asked + 1: "the answer"} if asked + 1 < len(messages) else {})
    names |= {0: "the system prompt"} if messages[0]["role"] == "system" else {}
    which = " and ".join(dict.fromkeys(names[i] for i in lost))
    raise InputError("model.name", f"the chat template of this model leaves out text of {which}", MEND)


def _squeezed(text: str) -> str:
    """Return a text without white space, which templates may trim."""
    return "".join(text.split())


def _without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """Let the first user turn begin with the system text, if there is one, and a blank line."""
    system, *turns = messages
    if system["role"] != "system":
        return messages
    question, *rest = turns
    return [{**question, "content": f"{system['content']}\n\n{question['content']}"}, *rest]


# ---- what is text ----------------------------------------------------------------------------------------------------


def control_names(tokenizer: Any, roles: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of the control tokens: special ones, and added ones that the chat template writes.

    Args:
        tokenizer: whose tokens.
        roles: of a conversation; a template may make up names, as in `'<|' + message.role + '|>'`.

    """
    return _control_names(tokenizer, str(tokenizer.chat_template), roles, len(tokenizer))


@functools.lru_cache(maxsize=16)
def _control_names(tokenizer: Any, template: str, roles: tuple[str, ...], size: int) -> tuple[str, ...]:
    written = template + (_skeleton(tokenizer, template, roles) or "" if roles else "")
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or token.content in written}
    names |= set(tokenizer.all_special_tokens)
    return tuple(sorted(name for name in names if len(name) > 1 and not name.isspace()))


def cut_names(apply: Callable[[Sequence[Message]], str], messages: Sequence[Message], names: tuple[str, ...]) -> str:
    """Return what a template makes of messages, with `CUT` in the names of control tokens that messages hold.

    A name that the template itself looks for in a message, as some look for `</think>`, is left to the template.

    Args:
        apply: the template.
        messages: the conversation.
        names: of control tokens.

    """
    text = cut = apply(messages)
    for i in range(len(messages)):
        for name in _names_in(messages[i]["content"], names):
            content = cut_in(messages[i]["content"], (name,))
            tried = [*messages[:i], {**messages[i], "content": content}, *messages[i + 1 :]]
            if (said := apply(tried)).replace(CUT, "") == text:
                messages, cut = tried, said
    return cut


def cut_in(text: str, names: tuple[str, ...]) -> str:
    """Return a text with `CUT` in the names of control tokens."""
    for name in _names_in(text, names):
        text = text.replace(name, name[0] + CUT + name[1:])
    return text


def _names_in(text: str, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in text] if _any_of(names).search(text) else []


@functools.lru_cache(maxsize=16)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or "(?!)")  # a vocabulary may have thousands of them


def continued(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that goes on within another one: without the space that some put before a text."""
    line = _plain_ids(tokenizer, "\n")
    ids = _plain_ids(tokenizer, "\n" + text)
    return ids[len(line) :] if ids[: len(line)] == line else _plain_ids(tokenizer, text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, after the special tokens that the tokenizer begins texts with, unless the text does so."""
    first, *others = text.split(CUT)
    ids = _plain_ids(tokenizer, first)
    for part in others:
        ids += continued(tokenizer, part)
    before = _beginning(tokenizer)
    return ids if ids[: len(before)] == before else before + ids


def _beginning(tokenizer: Any) -> list[int]:
    """Token ids of what the tokenizer begins texts with; it may end them with EOS too, which no prompt may."""
    ids, marked = _plain_ids(tokenizer, "0"), list(tokenizer.encode("0"))
    starts = (start for start in range(len(marked)) if marked[start : start + len(ids)] == ids)
    return marked[: next(starts, 0)]


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)
    return ids
