"""Chat templates are programs from a stranger's folder: what they take of memory and time has limits."""

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError

SECONDS = 10.0  # of processor time for a conversation
MEMORY = 256 << 20  # bytes
TEXT, TIMES = 10**6, 10  # characters of a conversation beside its messages', which may be repeated so often
ONE_LIMIT = threading.Lock()  # of memory, which is the whole process's: no thread may put back another's
LARGEST_POWER = 64  # of base and exponent; a power is one operation, which no limit ends


def apply_template(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Return the text that a tokenizer's chat template makes of a conversation.

    Args:
        tokenizer: that has a chat template.
        messages: the conversation.
        options: of `apply_chat_template`.

    Raises:
        Exception: whatever the template raises, and what ends it where it takes too much memory, time or text.

    """
    template = tokenizer.chat_template
    for text in template.values() if isinstance(template, dict) else [template]:
        _check_powers(text)
    with _limited():
        made: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    said = sum(len(message["content"]) for message in messages)
    if len(made) > TEXT + TIMES * said:
        raise ValueError(f"it writes {len(made):,} characters, where the messages have {said:,}")
    return made


@functools.lru_cache(maxsize=8)
def _check_powers(template: str) -> None:
    """Refuse powers but those of two small numbers.

    Raises:
        TemplateError: there is one.

    """
    tokens = [(kind, text) for _, kind, text in Environment().lex(template) if kind != "whitespace"]
    for at, token in enumerate(tokens):
        before, after, next_one = (tokens[at + step] if at + step < len(tokens) else ("", "") for step in (-1, 1, 2))
        if token != ("operator", "**") or before[1] in ("(", ","):  # as in f(**values)
            continue
        small = all(kind == "integer" and int(text, 0) <= LARGEST_POWER for kind, text in (before, after))
        if not small or next_one == token:
            raise TemplateError(f"{before[1]} ** {after[1]}: powers are of numbers up to {LARGEST_POWER} only")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Within it, more memory is a MemoryError (on Linux), and more time a TimeoutError (in the main thread)."""
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            stack.enter_context(ONE_LIMIT)
            stack.enter_context(_limited_memory())
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(_limited_time())
        yield


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeoutError(f"it takes over {SECONDS:g} s")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS / 20)  # again and again: Jinja tries a constant twice
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
