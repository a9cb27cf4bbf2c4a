"""The process in which reasoning-gym's scorers read completions.

Several evaluate an answer as Python, by `eval` itself or by sympy. So each answer has a second of processor time and
ten of the clock, two gigabytes, and names of numbers and formulas only: nothing that reaches files, programs or Python
itself. What breaks a limit scores 0.
"""

import ast
import builtins
import functools
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from hrpo.tasks import scorer_process
from hrpo.tasks.procedural import TEST, as_literal, make

BYTES = 2 << 30
_HARMLESS = frozenset(
    {"abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int"}
    | {"len", "list", "map", "max", "min", "pow", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple"}
    | {"zip"}
)
_REACHING_OUT = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "builtins.", "time.sleep", "webbrowser.")
_HARMLESS_EVENTS = ("os.listdir", "os.scandir", "builtins.id")  # of imports


def serve(name: str) -> None:
    """Score lines on standard input until it closes: see `Aside`."""
    scorer_process.serve(functools.partial(_load, name), lambda: sys.addaudithook(_refuse))


def _load(name: str) -> Callable[[str], str]:
    logging.disable()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a thread for each core would fill BYTES
    dataset = make(name, seed=0, size=TEST)
    entry = ast.literal_eval(as_literal(dataset[0]))
    score(dataset, str(entry["answer"]), entry)  # imports what it needs
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    def answer(question: str) -> str:
        text, entry = json.loads(question)
        return json.dumps(score(dataset, text, ast.literal_eval(entry)))

    return answer


def score(dataset: Any, answer: str, entry: dict[str, Any]) -> float:
    """Return what the data set's scorer gives an answer, 0 where it cannot read it."""
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:  # several scorers raise whatever comes up at an answer that they cannot read
        return 0.0


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
