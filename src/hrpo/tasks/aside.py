"""Scoring in a process of its own, which the kernel ends when it has used its time.

A limit in our own process would be a SIGALRM: main thread only, and powerless while one big power is taken in C. Here
the kernel ends the process, whatever it is doing; the answer is then wrong, and the next question starts a new process.
"""

import os
import subprocess
import sys
import threading


class Aside:
    """A process that answers a line with a line, started with the first question.

    Args:
        code: what it runs: it reads an empty line, says that it is up, and answers one line after the other until
            standard input closes. It limits itself.

    """

    def __init__(self, code: str) -> None:
        self.code = code
        self.forget()
        os.register_at_fork(after_in_child=self.forget)  # two processes must not share one pipe

    def forget(self) -> None:
        """Be as new: without a process."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, question: str) -> str:
        """Return the reply to a question, its line end included; nothing where the process has ended over it."""
        with self.lock:
            # put back only after a whole exchange: an interrupted one leaves a reply that nobody asked for
            process, self.process = self.process, None
            if process is None or process.poll() is not None:
                process = self._start()
            reply = _ask(process, question)
            if reply:
                self.process = process
            else:
                process.communicate()  # out of time: collect it
        return reply

    def _start(self) -> subprocess.Popen[str]:
        # -P and the path: it finds what we find, and no module that happens to lie in the working directory
        command = [sys.executable, "-P", "-c", self.code]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if not _ask(process, ""):
            raise RuntimeError("what judges answers could not be started; its error is on stderr")
        return process


def _ask(process: subprocess.Popen[str], question: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    print(question, file=process.stdin, flush=True)
    return process.stdout.readline()
