"""Tasks by name, and how their answers are judged."""

from collections.abc import Callable

from hrpo.config import TaskConfig
from hrpo.errors import InputError
from hrpo.tasks import arithmetic, gsm8k
from hrpo.tasks.judge import Verdict, judge
from hrpo.tasks.task import Example, Task

__all__ = ["TASKS", "Example", "Task", "Verdict", "judge", "load_task"]

TASKS: dict[str, Callable[[TaskConfig, int], Task]] = {"arithmetic": arithmetic.load, "gsm8k": gsm8k.load}


def load_task(config: TaskConfig, seed: int = 0) -> Task:
    """Return the task that a config names; `seed` is of generated problems and of the choice of worked examples.

    Raises:
        InputError: no task of this name, or its files cannot be used.

    """
    if config.name not in TASKS:
        raise InputError(f"task.name: {config.name!r} is none of {', '.join(TASKS)}")
    return TASKS[config.name](config, seed)
