"""Which checkpoints stay: the newest, and those that do best on training problems held out for that."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from hrpo.common import files
from hrpo.common.errors import InputError
from hrpo.common.files import read_lines
from hrpo.config.schema import KeepConfig
from hrpo.storage.run_dir import VALIDATION_FILE, checkpoints
from hrpo.tasks import Example, Task
from hrpo.tasks.base import essence

BEST = "best"  # a link to the best checkpoint


def hold_out(task: Task, count: int, seed: int) -> tuple[list[Example], Task]:
    """Return `count` training problems, drawn by the seed, and the task without them and whatever equals them.

    Raises:
        InputError: nothing would be left to train on.

    """
    if count == 0:
        return [], task
    shown = {message["content"] for message in task.preamble}
    drawn = random.Random(f"held out/{seed}").sample(range(len(task.train)), min(4 * count + 100, len(task.train)))
    candidates = [task.train[place] for place in drawn]
    different = {essence(example): example for example in candidates if example.question not in shown}
    held_out = dict(list(different.items())[:count])
    rest: Sequence[Example] = Rest(task.train, frozenset(held_out))
    if isinstance(task.train, list):
        rest = [example for example in task.train if essence(example) not in held_out]
    if len(held_out) < count or not rest:
        raise InputError(
            f"keep.problems: {count} held out of {len(task.train)} training problems leave none to train on; lower it"
        )
    return list(held_out.values()), dataclasses.replace(task, train=rest)


@dataclasses.dataclass(frozen=True)
class Rest(Sequence[Example]):
    """Problems that are made when they are asked for; in the place of one that is held out stands the next."""

    problems: Sequence[Example]
    held_out: frozenset[str]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        while essence(self.problems[index]) in self.held_out:
            index = (index + 1) % len(self)
        return self.problems[index]


def scores(folder: Path) -> dict[int, float]:
    """Return the accuracy on the held-out training problems of each update that has been validated."""
    return {row["step"]: row["accuracy"] for row in read_lines(folder / VALIDATION_FILE)}


def ranked(folder: Path) -> list[Path]:
    """Return the checkpoints that have been validated, the best first; of equals the earlier."""
    found, score = checkpoints(folder), scores(folder)
    return [found[step] for step in sorted(found.keys() & score.keys(), key=lambda step: (-score[step], step))]


def prune(folder: Path, keep: KeepConfig) -> None:
    """Point the link to the best of the checkpoints that stay, then delete those neither new nor good enough."""
    newest, best = list(checkpoints(folder).values()), ranked(folder)
    stay = {*newest[: keep.last or None], *best[: keep.best]}
    if best := [path for path in best if path in stay]:
        files.link(folder / BEST, best[0].name)
    for path in newest:
        if path not in stay:
            files.remove_folder(path)
