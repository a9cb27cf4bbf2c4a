"""Tasks by name, and how their answers are judged."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hrpo.config import TaskConfig
from hrpo.errors import InputError
from hrpo.tasks import arithmetic, custom, gsm8k
from hrpo.tasks.judge import Verdict, judge
from hrpo.tasks.task import Example, Task

__all__ = ["TASKS", "Example", "Task", "Verdict", "check_task", "is_file", "judge", "load_task", "remembered"]

TASKS: dict[str, Callable[..., Task]] = {"arithmetic": arithmetic.load, "gsm8k": gsm8k.load}
REWARDS = ("correct", "format")


def is_file(name: str) -> bool:
    """Whether a task's name is a Python file's."""
    return name.endswith(".py")


def check_task(config: TaskConfig) -> None:
    """Refuse settings that cannot be used, without reading a file of problems, running code or asking the Hub.

    Raises:
        InputError: an unknown name, a file that does not exist, or a value out of range.

    """
    for field in ("shots", "max_solution_chars"):
        if getattr(config, field) < 0:
            raise InputError(f"task.{field}: must be at least 0, got {getattr(config, field)}")
    if not config.rewards:
        raise InputError("task.rewards: names no reward; the default is correct: 1.0")
    labels = [_label(name) for name in config.rewards]
    for name, weight in config.rewards.items():
        file, _, function = name.rpartition(":")
        if name not in REWARDS and not (is_file(file) and function):
            raise InputError(f"task.rewards: {name!r} is none of {', '.join(REWARDS)}, FILE.py:FUNCTION")
        if name not in REWARDS and not Path(file).is_file():
            raise InputError(f"task.rewards: no file {file}")
        if not math.isfinite(weight):
            raise InputError(f"task.rewards: the weight of {name} must be a number, got {weight}")
        if labels.count(_label(name)) > 1:
            raise InputError(f"task.rewards: two rewards are called {_label(name)}")
    if is_file(config.name):
        custom.check(config)
    elif config.name not in TASKS:
        raise InputError(f"task.name: {config.name!r} is none of {', '.join(TASKS)}, nor a file FILE.py")
    elif config.name == "arithmetic":
        arithmetic.check(config)


def load_task(config: TaskConfig, seed: int = 0, *, test_only: bool = False) -> Task:
    """Return the task that a config names.

    Args:
        config: which task, and its settings.
        seed: of generated problems and of the choice of worked examples.
        test_only: leave the training problems and the reward files out.

    Raises:
        InputError: no task of this name, or its files cannot be used.

    """
    check_task(config)
    load = custom.load if is_file(config.name) else TASKS[config.name]
    task = load(config, seed, test_only=test_only)
    if test_only:
        return task
    functions = {_label(name): custom.reward_function(name) for name in config.rewards if name not in REWARDS}
    weights = {_label(name): weight for name, weight in config.rewards.items()}
    return dataclasses.replace(task, weights=weights, functions=functions)


def remembered(config: TaskConfig) -> dict[str, Any]:
    """Return a task's settings with paths that hold from any folder."""
    paths = {name: _absolute(value) for name in ("path", "test_path") if (value := getattr(config, name))}
    name = _absolute(config.name) if is_file(config.name) else config.name
    rewards = {key if key in REWARDS else _absolute(key): weight for key, weight in config.rewards.items()}
    return {**dataclasses.asdict(config), **paths, "name": name, "rewards": rewards}


def _label(reward: str) -> str:
    return reward.rpartition(":")[2]


def _absolute(path: str) -> str:
    return str(Path(path).resolve())
