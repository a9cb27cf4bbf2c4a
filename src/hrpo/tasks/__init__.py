"""Tasks by name, and how their answers are judged."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from hrpo.common.errors import InputError
from hrpo.config.bounds import outside_types
from hrpo.config.schema import TaskConfig
from hrpo.tasks import arithmetic, choice, custom, knowledge, mathematics, procedural
from hrpo.tasks.base import Example, Spec, Task
from hrpo.tasks.judge import Verdict, judge

__all__ = [
    "BENCHMARKS",
    "TASKS",
    "Example",
    "Task",
    "Verdict",
    "check_task",
    "is_file",
    "judge",
    "load_task",
    "remembered",
]

BENCHMARKS = {
    benchmark.name: benchmark for family in (mathematics, choice, knowledge) for benchmark in family.BENCHMARKS
}
TASKS: dict[str, Spec] = {
    "arithmetic": arithmetic.SPEC,
    **{name: benchmark.spec() for name, benchmark in BENCHMARKS.items()},
}
REWARDS = ("correct", "format")


def is_file(name: str) -> bool:
    """Whether a task's name is a Python file's."""
    return name.endswith(".py")


def takes_math_string(name: str) -> bool:
    """Whether a task's answers are mathematical, so that the release's rule can judge them too."""
    return name in TASKS and TASKS[name].kind == "math"


def check_task(config: TaskConfig, *, test_only: bool = False) -> None:
    """Refuse settings that cannot be used, without reading a file of problems, running code or asking the Hub.

    Args:
        config: which task, and its settings.
        test_only: no training problems are needed.

    Raises:
        InputError: an unknown name, a file that does not exist, or a value out of range.

    """
    if wrong := list(outside_types(config, "task.")):
        raise wrong[0]
    if config.scorer == "math_string" and not takes_math_string(config.name):
        raise InputError("task.scorer", f"math_string is for mathematical answers, which {config.name} has none of")
    if not test_only:
        _check_rewards(config.rewards)
    _home(config.name)[1](config, test_only=test_only)


def load_task(config: TaskConfig, seed: int = 0, *, test_only: bool = False) -> Task:
    """Return the task that a config names.

    Args:
        config: which task, and its settings.
        seed: of generated problems and of the choice of worked examples.
        test_only: leave the training problems and the reward files out.

    Raises:
        InputError: no task of this name, or its files cannot be used.

    """
    check_task(config, test_only=test_only)
    task: Task = _home(config.name)[0](config, seed, test_only=test_only)
    if config.scorer == "math_string":
        task = dataclasses.replace(task, kind="math_string")
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


def _home(name: str) -> tuple[Any, Any]:
    """Return what loads a task and what checks its settings."""
    if is_file(name):
        return custom.load, custom.check
    if name.startswith(procedural.PREFIX):
        return procedural.load, procedural.check
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {close[0]}?" if close else "`hrpo tasks` lists them; FILE.py names your own"
        raise InputError("task.name", f"there is no task {name!r}", hint)
    return TASKS[name].load, TASKS[name].check


def _check_rewards(rewards: dict[str, float]) -> None:
    if not rewards:
        raise InputError("task.rewards", "names no reward", "the default is correct: 1.0")
    labels = [_label(name) for name in rewards]
    for name, weight in rewards.items():
        file, _, function = name.rpartition(":")
        if name not in REWARDS and not (is_file(file) and function):
            raise InputError("task.rewards", f"{name!r} is none of {', '.join(REWARDS)}, FILE.py:FUNCTION")
        if name not in REWARDS and not Path(file).is_file():
            raise InputError("task.rewards", f"no file {file}")
        if not abs(weight) <= custom.LARGEST:
            raise InputError("task.rewards", f"the weight of {name} must be a number, got {weight}")
        if labels.count(_label(name)) > 1:
            raise InputError("task.rewards", f"two rewards are called {_label(name)}")
    if not any(rewards.values()):
        raise InputError("task.rewards", "every weight is 0, so nothing is rewarded", "the default is correct: 1.0")


def _label(reward: str) -> str:
    return reward.rpartition(":")[2]


def _absolute(path: str) -> str:
    return str(Path(path).resolve())
