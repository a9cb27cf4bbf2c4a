"""Scoring in a process of its own, which the kernel ends when it has used its time.

A limit in our own process would be a SIGALRM: main thread only, and powerless while one big power is taken in C. Here
the kernel ends the process, whatever it is doing, and the answer is wrong. What ends otherwise, or does not reply at
all, had nothing to do with the answer, as a rule: it is asked once more, in another process.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

SECONDS = 1.0  # of processor time for one answer
BRIEF_SECONDS = 0.1  # where hopeless answers have used up what they have together
SPARE_SECONDS = 20.0
CLOCK_SECONDS = 10.0  # for one answer, whether its process runs or is stopped
START_SECONDS = 120.0
_LATE = "late\n"
_ENDED = "ended\n"


class Aside:
    """A process that answers a line with a line, started with the first question.

    Answers that run out of time share 20 seconds. When those are used up, each answer has a tenth of a second, so that
    a batch of hopeless ones ends; replies in time earn seconds back.

    Args:
        code: what it runs: it prepares and calls `serve`.

    """

    def __init__(self, code: str) -> None:
        self.code = code
        self.spare = SPARE_SECONDS
        self.forget()
        os.register_at_fork(after_in_child=self.forget)  # two processes must not share one pipe

    def forget(self) -> None:
        """Be as new: without a process."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, question: str) -> str:
        """Return the reply to a question, its line end included; nothing where there is none in time."""
        with self.lock:
            seconds = SECONDS if self.spare > 0 else BRIEF_SECONDS
            reply = self._ask(f"{seconds} {question}")
            if reply in ("", _ENDED):
                reply = self._ask(f"{seconds} {question}")
            in_time = reply not in ("", _ENDED, _LATE)
            self.spare = min(SPARE_SECONDS, self.spare + BRIEF_SECONDS / 2) if in_time else self.spare - seconds
            return reply if in_time else ""

    def _ask(self, line: str) -> str:
        # put back only after a whole exchange: an interrupted one leaves a reply that nobody asked for
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            process = self._start()
        reply = _exchange(process, line, CLOCK_SECONDS)
        if reply in (_LATE, _ENDED) and not _exchange(process, "", CLOCK_SECONDS):  # the next one is up
            return reply
        if reply:
            self.process = process
        return reply

    def _start(self) -> subprocess.Popen[str]:
        # -P and the path: it finds what we find, and no module that happens to lie in the working directory
        command = [sys.executable, "-P", "-c", self.code]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        if not _exchange(process, "", START_SECONDS):
            raise RuntimeError("what judges answers could not be started; its error is on stderr")
        return process


def _exchange(process: subprocess.Popen[str], line: str, seconds: float) -> str:
    """Write a line and read one; where none comes in time, end the process and return nothing."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(seconds, _kill, [process])
    timer.daemon = True
    timer.start()
    try:
        print(line, file=process.stdin, flush=True)
        reply = process.stdout.readline()
    except BrokenPipeError:
        reply = ""
    finally:
        timer.cancel()
    if not reply:
        _kill(process)
        process.communicate()  # collect it
    return reply


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def serve(load: Callable[[], Callable[[str], str]], prepare: Callable[[], None] = lambda: None) -> None:
    """Answer lines on standard input until it closes: the process's side of `Aside`.

    A child answers, one line after the other; where it ends, the next one is made from what is loaded already, because
    importing what judges takes seconds. An empty line asks for a child, which replies that it is up.

    Args:
        load: returns the function that makes the reply to a question, both without a line end.
        prepare: called in each child before its first question.

    """
    questions, replies = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # nothing that judges reads our questions or writes among our replies
    os.dup2(nothing, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; we end when it does
    answer = load()
    os.dup2(nothing, 2)
    while True:
        line = questions.readline()
        while line not in (b"", b"\n"):  # what a child left unread
            line = questions.readline()
        if not line:
            return
        child = os.fork()
        if not child:
            try:
                prepare()
                _answer(answer, questions.fileno(), replies)
            except BaseException:  # an answer may end in anything, SystemExit too
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            return
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        print(_LATE if late else _ENDED, end="", file=replies, flush=True)


def _answer(answer: Callable[[str], str], questions: int, replies: IO[str]) -> None:
    print("up", file=replies, flush=True)
    with open(questions, "rb") as lines:
        for line in lines:
            seconds, _, question = line.decode().rstrip("\n").partition(" ")
            signal.setitimer(signal.ITIMER_PROF, float(seconds))  # SIGPROF's default action ends the process
            reply = answer(question)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(reply, file=replies, flush=True)
