"""What is asked: the problems of each task, the same for every model, and how a model is asked."""

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hrpo.common.errors import InputError
from hrpo.config.schema import Scorer, TaskConfig
from hrpo.evaluation.entries import OWN, Entry
from hrpo.tasks import BENCHMARKS, Example, Task, is_file, load_task, remembered, takes_math_string
from hrpo.tasks.base import SYSTEM_PROMPT, Message, make_preamble, normalized
from hrpo.tasks.benchmark import parsed
from hrpo.tasks.judge import DELIMITER
from hrpo.tasks.row_files import read

# Ours, as short as the paper's is long: no reasoning, the same tag.
DIRECT_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the assistant answers it at once, "
    "without reasoning. The answer is provided after the #### tag, i.e., #### {answer}."
)
SAME = ("path", "test_path", "scorer", "min_terms", "max_terms")  # what decides on the problems, and on what is right


@dataclasses.dataclass(frozen=True)
class Questions:
    """The test problems of a task, and worked examples by prompt, where some are asked for."""

    config: TaskConfig
    task: Task
    problems: Sequence[Example]
    shots: dict[str, list[Example]]

    @property
    def name(self) -> str:
        """What the task is called in tables, files and the keys of samples: a task file's name without its folder."""
        return Path(self.config.name).stem if is_file(self.config.name) else self.config.name

    def preamble(self, entry: Entry) -> list[Message]:
        """Return what comes before each question."""
        own = list(entry.settings.preamble if entry.settings.task else self.task.preamble)
        if entry.prompt == OWN and not entry.shots:
            return own
        system = {
            "direct": DIRECT_PROMPT,
            "cot": SYSTEM_PROMPT,
            OWN: "".join(message["content"] for message in own if message["role"] == "system"),
        }[entry.prompt]
        return make_preamble(system, self.shots.get(entry.prompt, []))

    def as_settings(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Return what settings.json says of them."""
        lines = (json.dumps([problem.question, problem.gold]) for problem in self.problems)
        return {
            "problems": len(self.problems),
            "of": len(self.task.test),
            "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "path": self.config.path,
            "test_path": self.config.test_path,
            "judged": self.task.kind or "by the task's own metric",
            "asked": {entry.label: self.preamble(entry) for entry in entries},
        }


def make_questions(
    names: Sequence[str],
    entries: Sequence[Entry],
    seed: int,
    path: str,
    test_path: str,
    *,
    problems: int,
    shots: int,
    shots_path: str,
    scorer: str,
) -> list[Questions]:
    """Return the problems of each task.

    Args:
        names: of the tasks; none takes the one that the checkpoints were trained on.
        entries: who is asked.
        seed: of generated problems and of the choice of worked examples.
        path: a training file, or a folder of one or several benchmarks.
        test_path: the test file, where it lies elsewhere.
        problems: how many, from the first; 0 takes all.
        shots: worked examples, from the training problems.
        shots_path: or from this file of rows in the benchmark's form.
        scorer: of mathematical tasks; empty: the one of training, or else the task's own.

    Raises:
        InputError: a task is unknown or not named, or its files or examples are missing.

    """
    names = names or [_trained_task(entries)]
    files = [name for name in names if name in BENCHMARKS] or names  # generated problems beside them need no file
    configs = [_config(name, entries, *((path, test_path) if name in files else ("", "")), scorer) for name in names]
    if scorer and not any(takes_math_string(name) for name in names):
        raise InputError("--scorer", "it is for mathematical answers, which none of the tasks has")
    if len({config.name for config in configs}) < len(configs):
        raise InputError("--tasks", "one is named twice")
    if len(configs) > 1 and Path(test_path).is_file():
        raise InputError("--test_path", "a file is the test of one task", "give a folder, or one task")
    found = []
    for config in configs:
        task = load_task(config, seed, test_only=True)
        if not task.test:
            raise InputError("--tasks", f"{config.name} has no test problem with an answer here")
        examples = {}
        for prompt in {entry.prompt for entry in entries} if shots else set[str]():
            examples[prompt] = _worked_examples(config, task, shots, seed, shots_path, direct=prompt == "direct")
        found.append(Questions(config, task, task.test[: problems or len(task.test)], examples))
    return found


def _trained_task(entries: Sequence[Entry]) -> str:
    """Return the task that all checkpoints were trained on; plain models do not count."""
    trained = {entry.settings.task["name"]: entry.checkpoint for entry in entries if entry.settings.task}
    if not trained:
        raise InputError("--tasks", f"{entries[0].checkpoint} is a plain model that remembers no task", "name one")
    if len(trained) > 1:
        raise InputError(
            "--tasks", f"the checkpoints were trained on {' and '.join(trained)}", "name what to evaluate on"
        )
    name = str(*trained)
    if is_file(name):
        raise InputError(
            "--tasks",
            f"this checkpoint's task is a file, whose code runs only if you say so: --tasks {name}",
        )
    return name


def _config(name: str, entries: Sequence[Entry], path: str, test_path: str, scorer: str) -> TaskConfig:
    """Return a task's settings: those of the checkpoints that were trained on it, which must agree, or its defaults."""
    own = [
        (entry.checkpoint, TaskConfig(**entry.settings.task))
        for entry in entries
        if entry.settings.task and remembered(TaskConfig(name))["name"] == entry.settings.task["name"]
    ]
    chosen = cast(Scorer, scorer if takes_math_string(name) else "")
    configs = [
        TaskConfig(
            name,
            path=path or ("" if test_path or trained.test_path else trained.path),
            test_path=test_path or ("" if path else trained.test_path),
            scorer=chosen or trained.scorer,
            min_terms=trained.min_terms,
            max_terms=trained.max_terms,
        )
        for _, trained in own
    ]
    for (other, _), config in zip(own, configs, strict=True):
        for field in SAME:
            if getattr(config, field) != getattr(configs[0], field):
                raise InputError(
                    "--checkpoint",
                    f"{own[0][0]} and {other} know {name} with different settings (task.{field})",
                    "give what decides it (--path, --test_path, --scorer), or evaluate them one by one",
                )
    return configs[0] if configs else TaskConfig(name, path=path, test_path=test_path, scorer=chosen or "own")


def _worked_examples(
    config: TaskConfig, task: Task, count: int, seed: int, source: str, *, direct: bool
) -> list[Example]:
    """Return worked examples, solutions written out or, for direct answers, the answer alone.

    They are training problems, drawn with a seed, and no test problems.

    Raises:
        InputError: there are not as many.

    """
    rows: Sequence[Example]
    if source:
        if config.name not in BENCHMARKS:
            raise InputError(
                "--shots_path", f"only the published benchmarks read a file of examples, not {config.name}"
            )
        if not Path(source).is_file():
            raise InputError("--shots_path", f"no file {source}")
        tests = {normalized(problem.question) for problem in task.test}
        rows, _ = parsed(BENCHMARKS[config.name], read(Path(source)))
        rows = [row for row in rows if normalized(row.question) not in tests]
    else:
        rows = load_task(config, seed).train
    order = random.Random(f"shots/{seed}").sample(range(len(rows)), len(rows))
    found = list[Example]()
    for place in order:
        if len(found) == count:
            break
        example = rows[place]
        if direct:
            gold = example.gold if isinstance(example.gold, str) else example.gold[0]
            found.append(dataclasses.replace(example, solution=f"{DELIMITER} {gold}"))
        elif example.solution:
            found.append(example)
    if len(found) < count:
        what = "training problems" if direct else "training problems with a written solution"
        raise InputError(
            "--shots",
            f"{count} worked examples, but {config.name} has {len(found)} {what} here",
            "give its training file or folder, --path, or a file of examples, --shots_path"
            + ("" if direct else "; answers alone are examples too, --prompt direct"),
        )
    return found
