"""The cells of an evaluation: a model, a task and a way to decode, with the file of their answers."""

from dataclasses import dataclass
from pathlib import Path

from hrpo.evaluation import store
from hrpo.evaluation.entries import Entry
from hrpo.evaluation.questions import Questions


@dataclass(frozen=True)
class Cell:
    """What one model answers on one task, greedily or in samples, and the file it ends up in.

    Args:
        entry: the model.
        questions: the task.
        how: "greedy" or "sampled".
        samples: answers to each problem, k.
        size: problems in a part of the file.
        path: of the file.
        mark: which tells the file from those of other cells and evaluations.

    """

    entry: Entry
    questions: Questions
    how: str
    samples: int
    size: int
    path: Path
    mark: str

    def parts(self) -> dict[Path, range]:
        """Return the problems that each part of the file holds, by its path."""
        count = len(self.questions.problems)
        return {
            store.part(self.path, number): range(first, min(first + self.size, count))
            for number, first in enumerate(range(0, count, self.size))
        }

    def check(self) -> None:
        """Refuse a file, or a part of one, that does not hold what it should."""
        if self.path.is_file():
            store.check(self.path, range(len(self.questions.problems)), self.samples, self.mark)
            return
        parts = self.parts()
        for path in store.parts(self.path):
            store.check(path, parts.get(path, range(0)), self.samples, self.mark)
