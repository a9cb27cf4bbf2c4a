"""Multiple choice: MMLU (arXiv:2009.03300), its STEM subjects, and ARC-Challenge (arXiv:1803.05457).

A row is one of
- question, options, and the right letter in the cells of a CSV file without a header (MMLU's authors);
- `question`, `choices`, `answer` (from 0, or a letter), alone or within `train` (MMLU on the Hub);
- `question` with `stem` and labelled `choices`, `answerKey` (ARC's authors), or the same as on the Hub;
- `query`, `choices`, `gold`; or `instruction` with the options in its text, `answer` "answerN".
"""

import re
from collections.abc import Sequence
from typing import Any

from hrpo.tasks.base import Example
from hrpo.tasks.benchmark import Benchmark, Split

LETTERS = "ABCDEFGHIJ"
STEM = (
    "abstract_algebra",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
)

_INSTRUCTION = re.compile(r"[^:]*: (.*?)\s*Answer1: (.*?)\s*Answer format:.*", re.DOTALL)
_OPTION = re.compile(r"\s+Answer\d: ")


def choice_row(row: Any) -> Example:
    """Make a problem of a row of any of these forms."""
    if isinstance(row, list):
        stem, *options, answer = row
        return multiple_choice(stem, options, answer)
    row = row.get("train", row)
    if "instruction" in row:
        match = _INSTRUCTION.fullmatch(row["instruction"])
        if match is None:
            raise ValueError("the instruction has no options Answer1: ...")
        return multiple_choice(match[1], _OPTION.split(match[2]), int(row["answer"].removeprefix("answer")) - 1)
    if "query" in row:
        return multiple_choice(row["query"].removeprefix("Question: "), row["choices"], row["gold"])
    question, choices = row["question"], row.get("choices")
    if "answerKey" not in row:
        return multiple_choice(question, row["choices"], row["answer"])
    if isinstance(question, dict):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, dict):
        labels, options = choices["label"], choices["text"]
    else:
        labels, options = [choice["label"] for choice in choices], [choice["text"] for choice in choices]
    return multiple_choice(question, options, labels.index(row["answerKey"]))


def multiple_choice(stem: str, options: Sequence[str], answer: int | str) -> Example:
    """Make a problem; `answer` is the place of the right option, from 0, or its letter."""
    place = LETTERS.index(answer.strip()) if isinstance(answer, str) else answer
    if not 0 <= place < len(options) or len(options) < 2:
        raise ValueError(f"answer {answer!r} of {len(options)} options")
    stem, options = stem.strip(), [option.strip() for option in options]
    lines = [f"Question: {stem}", "Options:", *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))]
    return Example("\n".join(lines), LETTERS[place], columns={"stem": stem, "options": options})


_MMLU_STEM = Split(
    ("cais/mmlu", "all", "test"),
    "mmlu",
    ("mmlu_stem_test.jsonl", *("|".join(f"{folder}{name}_test.csv" for name in STEM) for folder in ("test/", ""))),
    3018,
    keep=lambda row: row["subject"] in STEM,
)
_MMLU_AUXILIARY = Split(
    ("cais/mmlu", "all", "auxiliary_train"),
    "mmlu",
    ("auxiliary_train/*.csv", "auxiliary_train*.csv", "auxiliary_train*.json", "auxiliary_train*.jsonl"),
    99842,
)
_ARC = "allenai/ai2_arc", "ARC-Challenge"
_ARC_TRAIN = Split((*_ARC, "train"), "arc_challenge", ("ARC-Challenge-Train.jsonl", "train.json", "train.jsonl"), 1119)
_ARC_TEST = Split((*_ARC, "test"), "arc_challenge", ("ARC-Challenge-Test.jsonl", "test.json", "test.jsonl"), 1172)

BENCHMARKS = (
    Benchmark(
        "mmlu_stem", "choice", choice_row, (), (_MMLU_STEM,), "Hendrycks et al., arXiv:2009.03300, 18 subjects", "MIT"
    ),
    Benchmark(
        "mmlu_arc",
        "choice",
        choice_row,
        (_MMLU_AUXILIARY, _ARC_TRAIN),
        (_MMLU_STEM,),
        "the paper's mix: MMLU auxiliary and ARC-Challenge; tests on mmlu_stem",
        "MIT; CC BY-SA 4.0",
        held_out=(_ARC_TEST,),
    ),
    Benchmark(
        "arc_challenge",
        "choice",
        choice_row,
        (_ARC_TRAIN,),
        (_ARC_TEST,),
        "AI2, arXiv:1803.05457",
        "CC BY-SA 4.0",
    ),
)
