"""A task that is a Python file, and reward functions that are: docs/your-task.md shows what is in one.

The file is run, so it is the user who names it, never a checkpoint.
"""

import asyncio
import functools
import importlib.util
import inspect
import itertools
import math
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from pathlib import Path
from types import ModuleType
from typing import Any

from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.tasks.base import SYSTEM_PROMPT, Conversation, Example, RewardFunction, Task, prepare
from hrpo.tasks.judge import DELIMITER, RULES

# What reward functions get beside a row's columns.
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
ROLES = ("system", "user", "assistant")  # of a prompt's turns
LARGEST = 3.4028234e38  # that a float32 holds


def check(config: TaskConfig, *, test_only: bool = False) -> None:
    """Refuse a file that does not exist, without running it.

    Raises:
        InputError: no such file, or settings that a task file has no use for.

    """
    if not Path(config.name).is_file():
        raise InputError("task.name", f"no file {config.name}")
    for field in ("path", "test_path"):
        if getattr(config, field):
            raise InputError(f"task.{field}", f"{config.name} brings its own rows", f"leave {field} out")


def load(config: TaskConfig, seed: int, *, test_only: bool = False) -> Task:
    """Run a task file and return its task.

    Raises:
        InputError: something is missing in the file, or its code fails; names file and line.

    """
    path = Path(config.name).resolve()
    module = run_file(path)
    kind, reward, metric = (getattr(module, name, None) for name in ("kind", "reward", "metric"))
    system = getattr(module, "system", SYSTEM_PROMPT)
    if kind is None and reward is None:
        raise InputError(str(path), "has neither `kind` nor `reward`, so nothing can judge an answer")
    if kind is not None and kind not in RULES:
        raise InputError(str(path), f"kind must be one of {', '.join(RULES)}, got {kind!r}")
    if not isinstance(system, str):
        raise InputError(str(path), f"system must be text, got {type(system).__name__}")
    test = _rows(path, module, "test", kind, seed)
    return prepare(
        config,
        seed,
        kind,
        [] if test_only else _rows(path, module, "train", kind, seed),
        test,
        system=system,
        reward=None if reward is None else guard(path, "reward", reward),
        metric=None if metric is None else guard(path, "metric", metric, unit=True),
        same=lambda example: example.question,  # spaces or case may be what the task is about
    )


def reward_function(name: str) -> RewardFunction:
    """Return the function that FILE.py:FUNCTION names.

    Raises:
        InputError: no such file or function, or the file fails.

    """
    file, _, function = name.rpartition(":")
    path = Path(file).resolve()
    found = getattr(run_file(path), function, None)
    if found is None:
        raise InputError("task.rewards", f"there is no function {function} in {path}")
    return guard(path, function, found)


def run_file(path: Path) -> ModuleType:
    """Run a Python file and return it as a module."""
    spec = importlib.util.spec_from_file_location(f"hrpo_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    _run(path, "the file", spec.loader.exec_module, module)
    return module


def guard(path: Path, name: str, function: Any, *, unit: bool = False) -> RewardFunction:
    """Return a user's function such that whatever goes wrong in it becomes one line, and a None of it NaN.

    Args:
        path: its file.
        name: what to call it.
        function: in TRL's signature.
        unit: its values must lie in 0..1.

    Raises:
        InputError: it is no function.

    """
    if not callable(function):
        raise InputError(str(path), f"{name} must be a function of completions and columns")

    def call(completions: list[str], **columns: Any) -> list[float]:
        n = len(completions)
        returned = _run(path, name, _outcome, function, n + 1, completions=completions, **columns)
        if not isinstance(returned, list):
            shown = _run(path, name, repr, returned)
            raise InputError(str(path), f"{name} must return a list of numbers, not {shown:.60}")
        if len(returned) != n:
            count = f"{len(returned)}" if len(returned) < n else f"more than {n}"
            raise InputError(str(path), f"{name} returned {count} values for {n} completions")
        return [_number(path, name, value, place, unit) for place, value in enumerate(returned, 1)]

    return call


def _outcome(function: Callable[..., Any], most: int, /, **arguments: Any) -> Any:
    """Call a function, wait for it where it is async, and return the first `most` values of a list or its like."""
    returned = function(**arguments)
    if inspect.isawaitable(returned):
        returned = asyncio.run_coroutine_threadsafe(_awaited(returned), _event_loop()).result()
    if isinstance(returned, str | bytes | Mapping | Set) or not isinstance(returned, Iterable):
        return returned
    return list(itertools.islice(returned, most))


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except (SystemExit, asyncio.CancelledError) as error:  # they would end the loop, and who waits for it waits on
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of all async rewards, in a thread of its own: what they keep open between calls stays open."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _number(path: Path, name: str, value: Any, place: int, unit: bool) -> float:
    """Return a value as a number, None as NaN."""
    if value is None:
        return math.nan
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except OverflowError:  # of an integer, whose digits would fill pages
        number = math.inf
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            str(path),
            f"{name} must return a list of numbers, got {type(value).__name__} for completion {place}",
        ) from error
    if not abs(number) <= LARGEST or (unit and not 0 <= number <= 1):
        wanted = f"a number of at most {LARGEST:.2g}" if math.isfinite(number) else "a finite number"
        wanted = "a number from 0 to 1" if unit else wanted
        raise InputError(str(path), f"{name} must return {wanted}, got {number} for completion {place}")
    return number


def _run(path: Path, name: str, function: Callable[..., Any], /, *args: Any, **columns: Any) -> Any:
    """Call a user's code; an exception becomes an InputError that names its line."""
    try:
        return function(*args, **columns)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # anything may be raised in there, sys.exit's SystemExit too
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", in {name}"
        if isinstance(error, SyntaxError) and error.filename == str(path):
            where = f", line {error.lineno}"
        elif frames:
            where = f", line {frames[-1].lineno}"
            where += "" if frames[-1].name == "<module>" else f", in {frames[-1].name}"
        text = " ".join(str(error).split())
        raise InputError(f"{path}{where}", f"{type(error).__name__}: {text}") from error


def _rows(path: Path, module: ModuleType, split: str, kind: str | None, seed: int) -> list[Example]:
    if not hasattr(module, split):
        raise InputError(str(path), f"has no `{split}`: a list of rows, or a function of a seed that returns one")
    rows = getattr(module, split)
    if callable(rows):
        rows = _run(path, split, rows, seed)
    if not isinstance(rows, list | tuple):
        raise InputError(str(path), f"{split} must be a list of rows, got {type(rows).__name__}")
    return [_example(f"{path}, {split} row {number}", row, kind) for number, row in enumerate(rows, 1)]


def _conversation(where: str, turns: list[Any]) -> Conversation:
    """Return a prompt that is a list of messages."""
    for turn in turns:
        if not (isinstance(turn, Mapping) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)):
            raise InputError(where, f"a turn of a prompt needs a role ({', '.join(ROLES)}) and a content (text)")
    roles = [turn["role"] for turn in turns]
    if roles[-1:] != ["user"] or "system" in roles[1:]:
        raise InputError(
            where,
            "a prompt that is a conversation ends with the user, and only begins with a system",
        )
    return Conversation(turns)


def _example(where: str, row: Any, kind: str | None) -> Example:
    if not isinstance(row, Mapping):
        raise InputError(where, f"must be a dict with prompt and gold, got {type(row).__name__}")
    prompt, gold, solution = row.get("prompt"), row.get("gold"), row.get("solution", "")
    if isinstance(prompt, list):
        prompt = _conversation(where, prompt)
    if not isinstance(prompt, str) or not prompt:
        raise InputError(where, "has no prompt (text)")
    golds = [gold] if isinstance(gold, str) else gold
    if not isinstance(golds, list) or not golds or not all(isinstance(text, str) for text in golds):
        raise InputError(where, "has no gold (text, or a list of texts)")
    if kind not in (None, "qa") and len(golds) != 1:
        raise InputError(where, f"kind {kind} takes one gold answer, got {len(golds)}")
    if not isinstance(solution, str):
        raise InputError(where, f"solution must be text, got {type(solution).__name__}")
    if solution and DELIMITER not in solution:
        solution = f"{solution.rstrip()}\n{DELIMITER} {golds[0]}"
    columns = {name: value for name, value in row.items() if name not in ("prompt", "gold", "solution")}
    for name in RESERVED:
        if name in columns:
            raise InputError(where, f"a column cannot be called {name}: reward functions get something else by it")
    try:
        return Example(prompt, gold if isinstance(gold, str) else golds, solution, columns)
    except ValueError as error:
        raise InputError(where, str(error)) from error
