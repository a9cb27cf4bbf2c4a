"""SIGTERM and Ctrl-C: a run finishes its update, saves, and ends; a second one ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hrpo.errors import Interrupted

NOTE = b"hrpo: this update is finished and saved first; once more quits at once\n"


class Stop:
    """Whether a run has been asked to end, and whether it has updates that no checkpoint holds yet."""

    asked = False
    unsaved = False

    def saved(self) -> None:
        """Nothing can be lost from here on: end now, where that has been asked for."""
        self.unsaved = False
        if self.asked:
            raise Interrupted

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. Between saved updates, as in the check or an evaluation, the run ends where it stands."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self.unsaved:
            raise Interrupted
        os.write(2, NOTE)  # print may not be called within a handler: it may have been interrupted itself


@contextmanager
def listening() -> Iterator[Stop]:
    """Yield what a run reads while SIGTERM and Ctrl-C are told to it; one that is ignored stays ignored."""
    stop = Stop()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
