"""Several processes: where one is stopped, or their launcher has died, the others end instead of waiting for ever.

An ended process is noticed without this: its connections close. A stopped one (SIGSTOP, a frozen container) keeps them
open, and the others wait inside of PyTorch, where Python does not even hear of SIGTERM. So a thread looks around.
"""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import psutil

from hrpo.common import distributed
from hrpo.common.output import warn

LIMIT = timedelta(minutes=30)  # of a common step: for what cannot be seen from here, as another machine that froze
TICK = 1.0  # seconds from one look to the next
PATIENCE = 10  # looks in a row at which a process was stopped
_threads: list[threading.Thread] = []


def start() -> None:
    """Watch the launcher and the other processes on this machine from now on; all processes have to call it."""
    if distributed.count() == 1 or _threads:
        return
    places = distributed.gather((socket.gethostname(), os.getpid()))
    here = [pid for host, pid in places if host == socket.gethostname()]
    leader = places[0][1] if places[0][0] == socket.gethostname() else 0
    _threads.append(threading.Thread(target=watch, args=(os.getppid(), here, leader), daemon=True))
    _threads[0].start()


def watch(launcher: int, here: Sequence[int], leader: int) -> None:
    """Look around until this process ends, by itself or by what is seen.

    Args:
        launcher: the process that started this one. When it has died the first process is told by a signal: it saves,
            and the others end with it; those on another machine than the first one end at once.
        here: the processes on this machine, by rank. When one has been stopped for a while the others end.
        leader: the first process, 0 where it is on another machine.

    """
    stopped, orphan = Counter[int](), False
    while True:
        time.sleep(TICK)
        if os.getppid() != launcher and not orphan:
            orphan = True
            if leader == os.getpid():
                warn("hrpo: the launcher has died, so the run ends")
                # A second SIGTERM would be taken for impatience, a second SIGHUP is not; but nohup has it ignored.
                ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
                os.kill(leader, signal.SIGTERM if ignored else signal.SIGHUP)
            elif not leader:
                _end("the launcher has died")
        for pid in here:
            stopped[pid] = stopped[pid] + 1 if _is_stopped(pid) else 0
            if stopped[pid] == PATIENCE:
                says = next(other for other in here if not _is_stopped(other)) == os.getpid()
                _end(f"process {pid} has been stopped for {PATIENCE * TICK:g} seconds" if says else "")


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:  # its connections are closed
        return False


def _end(why: str) -> None:
    if why:
        warn(f"hrpo: stopped: {why}; --resume goes on from the newest checkpoint")
    os._exit(3)
