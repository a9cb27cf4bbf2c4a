"""What `hrpo tasks` prints."""

from collections.abc import Iterator
from pathlib import Path

from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.tasks import TASKS, load_task, procedural

SHOWN = 3
_LINE = "{:16} {:7} {:>9} {:>7}  {:14} {:26} {}"


def list_tasks(folder: str = "") -> Iterator[str]:
    """Yield a line for each task: kind, problems, licence, source, and which of its files are at hand.

    Args:
        folder: look for the files there; else in the Hub's cache.

    Raises:
        InputError: there is no such folder.

    """
    if folder and not Path(folder).is_dir():
        raise InputError("task.path", f"there is no folder {folder}")
    yield _LINE.format("task", "metric", "train", "test", "at hand", "licence", "source")
    for name, spec in TASKS.items():
        train = f"{spec.train:,}" if spec.train else "-"
        yield _LINE.format(name, spec.kind, train, f"{spec.test:,}", spec.at_hand(folder), spec.licence, spec.source)
    count = len(procedural.names())
    there = f"{count} data sets" if count else "not installed"
    yield _LINE.format(
        "reasoning_gym/X",
        "own",
        f"{procedural.TRAIN:,}",
        f"{procedural.TEST:,}",
        there,
        "Apache-2.0",
        "generated, arXiv:2505.24760; `hrpo tasks reasoning_gym` lists them",
    )
    yield _LINE.format("FILE.py", "own", "", "", "", "", "your own: docs/your-task.md")


def show_task(name: str, path: str = "") -> Iterator[str]:
    """Yield how a task asks: what comes before every problem, then three problems and their gold answers.

    Args:
        name: of the task; "reasoning_gym" alone lists its data sets.
        path: a file of problems, or a folder with the test file; else they come from the Hub.

    Raises:
        InputError: there is no such task, or its problems are not at hand.

    """
    if name == procedural.PREFIX.rstrip("/"):
        procedural.check_installed()
        yield from (procedural.PREFIX + known for known in procedural.names())
        return
    task = load_task(TaskConfig(name, test_path=path), test_only=True)
    yield f"{name}: metric {task.kind or 'own'}, {len(task.test):,} problems"
    yield from (f"left out {count} {which}" for which, count in task.dropped.items())
    for message in task.preamble:
        yield from ("", f"[{message['role']}]", message["content"])
    for example in task.test[:SHOWN]:
        yield from ("", "[user]", example.question, f"[gold] {example.gold}")
