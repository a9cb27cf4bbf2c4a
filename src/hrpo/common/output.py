"""Lines to standard output and standard error: texts that a terminal cannot take for commands."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hrpo.common.errors import OutputError

# What a terminal acts on instead of showing it: the control characters C0, DEL and C1 but for tabs and ends of lines,
# marks that change the direction of writing, and two separators that end lines as well. Halves of surrogate pairs are
# here because no stream can write them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return a text with its control characters written out, ESC as \x1b."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(line: object) -> None:
    """Print a line to standard output.

    Raises:
        OutputError: standard output takes nothing any more.

    """
    with failures_told():
        print(visible(str(line)))


def warn(line: object) -> None:
    """Print a line to standard error; where that takes nothing any more, nobody can be told."""
    with suppress(OSError):
        print(visible(str(line)), file=sys.stderr)


@contextmanager
def failures_told() -> Iterator[None]:
    """Let a failure to write in the block be known as one of standard output, not of a file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"nothing can be written to standard output ({error.strerror}); let it go elsewhere"
        ) from error


def give_up_output() -> None:
    """Throw away what Python still holds back for a standard output that takes nothing: it would try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
