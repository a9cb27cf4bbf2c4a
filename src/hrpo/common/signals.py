"""SIGTERM, SIGHUP and Ctrl-C: a run finishes its update, saves, and ends; a second one ends it at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hrpo.common.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FROM_PYTHON = "train it again with resume=True"
NOTE = b"hrpo: this update is finished and saved first; once more quits at once\n"


class Stop:
    """Whether a run has been asked to end, and whether it has updates that no checkpoint holds yet.

    Args:
        how_to_go_on: says, at the moment that the run ends, how to go on with it.

    """

    asked = False
    unsaved = False

    def __init__(self, how_to_go_on: Callable[[], str] = lambda: FROM_PYTHON) -> None:
        self.how_to_go_on = how_to_go_on

    def saved(self) -> None:
        """Nothing can be lost from here on: end now, where that has been asked for."""
        self.unsaved = False
        if self.asked:
            raise Interrupted(self.how_to_go_on())

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. Between saved updates, as in the check or an evaluation, the run ends where it stands.

        A terminal that closes may send SIGHUP more than once, which is no impatience.
        """
        if self.asked:
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        self.asked = True
        if not self.unsaved:
            raise Interrupted(self.how_to_go_on())
        with suppress(OSError):  # of a terminal that is closed
            os.write(2, NOTE)  # print may not be called within a handler: it may have been interrupted itself


@contextmanager
def listening(how_to_go_on: Callable[[], str] = lambda: FROM_PYTHON) -> Iterator[Stop]:
    """Yield what a run reads while these signals are told to it; one that is ignored, as by nohup, stays ignored.

    Args:
        how_to_go_on: see `Stop`.

    """
    stop = Stop(how_to_go_on)
    numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
