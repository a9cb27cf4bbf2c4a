"""Training problems held out, to tell which checkpoint does best."""

import dataclasses
import random
from collections.abc import Sequence

from hrpo.common.errors import InputError
from hrpo.tasks import Example, Task
from hrpo.tasks.base import dedup_key


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
    different = {dedup_key(example): example for example in candidates if example.question not in shown}
    held_out = dict(list(different.items())[:count])
    rest: Sequence[Example] = Rest(task.train, frozenset(held_out))
    if isinstance(task.train, list):
        rest = [example for example in task.train if dedup_key(example) not in held_out]
    if len(held_out) < count or not rest:
        raise InputError(
            "keep.problems",
            f"{count} held out of {len(task.train)} training problems leave none to train on",
            "lower it",
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
        while dedup_key(self.problems[index]) in self.held_out:
            index = (index + 1) % len(self)
        return self.problems[index]
