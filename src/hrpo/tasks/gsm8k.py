"""GSM8K (arXiv:2110.14168) as its authors publish it: JSONL with `question` and `answer`, the answer after ####."""

import json
import random
import re
from pathlib import Path

from hrpo.config import TaskConfig
from hrpo.errors import InputError
from hrpo.tasks.judge import DELIMITER, last_number
from hrpo.tasks.task import SYSTEM_PROMPT, Example, Task, make_preamble

_CALCULATOR = re.compile(r"<<.*?>>")  # annotations such as <<48/2=24>>, no part of the text


def read(path: Path) -> list[Example]:
    """Read a file of problems.

    Raises:
        InputError: no such file, or a line that is not such a row; names the line.

    """
    if not path.is_file():
        raise InputError(
            f"task.path: no file {path}; give GSM8K's train.jsonl (test.jsonl beside it; `hrpo eval` takes --test_path)"
        )
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: not a JSON object with question and answer ({type(error).__name__})"
            ) from error
        if not isinstance(question, str) or not isinstance(answer, str):
            raise InputError(f"{path}, line {number}: question and answer must be text")
        solution, *golds = _CALCULATOR.sub("", answer).split(DELIMITER)
        if len(golds) != 1 or last_number(golds[0]) is None:
            raise InputError(f"{path}, line {number}: the answer must have #### once, and a number after it")
        gold = golds[0]
        examples.append(Example(question.strip(), gold.strip(), f"{solution.strip()}\n#### {gold.strip()}"))
    if not examples:
        raise InputError(f"{path}: no rows in it")
    return examples


def load(config: TaskConfig, seed: int, *, test_only: bool = False) -> Task:
    """Return the task; training rows that occur among the test rows are dropped, and so are the worked examples.

    Without a training file there are no training rows; a test file is needed always.
    """
    if not config.path and not config.test_path:
        raise InputError("task.path: GSM8K needs its training file, such as train.jsonl (test.jsonl beside it)")
    train = read(Path(config.path)) if config.path and not test_only else []
    test = read(Path(config.test_path) if config.test_path else Path(config.path).with_name("test.jsonl"))
    seen = {example.question for example in test}
    train = [example for example in train if example.question not in seen]
    if config.max_solution_chars:
        train = [example for example in train if len(example.solution) <= config.max_solution_chars]
    if len(train) < config.shots:
        raise InputError(f"task.shots: {config.shots} worked examples, but there are {len(train)} training problems")
    shots = random.Random(f"shots/{seed}").sample(train, config.shots)
    train = [example for example in train if example not in shots]
    return Task("gsm8k", "number", train, test, make_preamble(SYSTEM_PROMPT, shots))
