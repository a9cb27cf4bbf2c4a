"""The process in which reasoning-gym's scorers read completions.

Several evaluate an answer as Python, by `eval` itself or by sympy. So each answer has a second of processor time and
two of the clock, two gigabytes, and names of numbers and formulas only: nothing that reaches files, programs or Python
itself. What breaks a limit scores 0.
"""

import ast
import builtins
import json
import logging
import os
import resource
import signal
import sys
from types import CodeType
from typing import IO, Any

from hrpo.tasks.procedural import TEST, as_literal, make

SECONDS, CLOCK_SECONDS, BYTES = 1.0, 2.0, 2 << 30
_HARMLESS = frozenset(
    {"abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int"}
    | {"len", "list", "map", "max", "min", "pow", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple"}
    | {"zip"}
)
_REACHING_OUT = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "builtins.", "time.sleep", "webbrowser.")
_HARMLESS_EVENTS = ("os.listdir", "os.scandir", "builtins.id")  # of imports


def serve(name: str) -> None:
    """Score lines on standard input until it closes: see `Aside`.

    A child scores, one answer after the other. Where it has ended over one, the answer scores 0, and the next child is
    ready at once: importing reasoning-gym takes seconds.
    """
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    for number in (0, 1, 2):  # no scorer reads our questions or writes among our replies
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; we end when it does
    logging.disable()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a thread for each core would fill BYTES
    dataset = make(name, seed=0, size=TEST)
    entry = ast.literal_eval(as_literal(dataset[0]))
    score(dataset, str(entry["answer"]), entry)  # imports what it needs
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    questions.readline()
    print("up", file=replies, flush=True)
    while True:
        child = os.fork()
        if not child:
            try:
                _work(dataset, questions, replies)
            except BaseException:  # an answer may end in anything, SystemExit too
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
        print(0.0, file=replies, flush=True)


def score(dataset: Any, answer: str, entry: dict[str, Any]) -> float:
    """Return what the data set's scorer gives an answer, 0 where it cannot read it."""
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:  # several scorers raise whatever comes up at an answer that they cannot read
        return 0.0


def _work(dataset: Any, questions: IO[bytes], replies: IO[str]) -> None:
    sys.addaudithook(_refuse)
    for line in questions:
        answer, entry = json.loads(line)
        entry = ast.literal_eval(entry)
        # the default action of both signals ends the process
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
        value = score(dataset, answer, entry)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(value), file=replies, flush=True)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what no score needs: an audit hook (PEP 578)."""
    if event == "exec":
        (code,) = arguments
        if code.co_filename.startswith("<") and not code.co_filename.startswith("<frozen"):
            names = {name for name in _names(code) if name.startswith("_") or hasattr(builtins, name)}
            if names - _HARMLESS:
                raise PermissionError(f"an answer may not use {', '.join(sorted(names - _HARMLESS))}")
    elif event == "open":
        _, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError("an answer may not write a file")
    elif event.startswith(_REACHING_OUT) and event not in _HARMLESS_EVENTS:
        raise PermissionError(f"an answer may not use {event}")


def _names(code: CodeType) -> set[str]:
    """Return the names that a piece of code uses, attributes and functions within it included."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *code.co_varnames}.union(*inner)
