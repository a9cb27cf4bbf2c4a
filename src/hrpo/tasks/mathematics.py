r"""Mathematics in words: GSM8K (arXiv:2110.14168), MATH (arXiv:2103.03874) and its MATH-500 (arXiv:2305.20050).

GSM8K's rows have `question` and `answer`, the number after ####. MATH's have `problem` and `solution`, the answer in
its last \boxed; where a row has an `answer` of its own, that counts. A row whose answer is empty has none.
"""

import re
from typing import Any

from hrpo.tasks.base import Example
from hrpo.tasks.benchmark import Benchmark, Split
from hrpo.tasks.judge import DELIMITER
from hrpo.tasks.math_string import up_to_brace
from hrpo.tasks.number import last_number

_CALCULATOR = re.compile(r"<<.*?>>")  # annotations such as <<48/2=24>>, no part of the text


def gsm8k_row(row: Any) -> Example:
    """Make a problem of a row of GSM8K."""
    question, answer = row["question"], row["answer"]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError("question and answer must be text")
    solution, *golds = _CALCULATOR.sub("", answer).split(DELIMITER)
    if len(golds) != 1 or last_number(golds[0]) is None:
        raise ValueError("the answer must have #### once, and a number after it")
    gold = golds[0].strip()
    return Example(question.strip(), gold, f"{solution.strip()}\n{DELIMITER} {gold}")


def math_row(row: Any) -> Example | None:
    """Make a problem of a row of MATH."""
    problem, solution = row["problem"], row.get("solution", "")
    gold = row["answer"] if "answer" in row else last_boxed(row["solution"])
    if not isinstance(problem, str) or not isinstance(solution, str) or not isinstance(gold, str | None):
        raise TypeError("problem, solution and answer must be text")
    if gold is None or not gold.strip():
        return None
    written = f"{solution.strip()}\n{DELIMITER} {gold.strip()}" if solution else ""
    return Example(problem.strip(), gold.strip(), written)


def last_boxed(solution: str) -> str | None:
    r"""Return what the last \boxed or \fbox holds, braces or not ("\boxed 5" holds 5); None without one."""
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        return None
    inner = re.sub(r"^\\(?:boxed|fbox)\s*", "", solution[start:])
    return up_to_brace(inner[1:]) if inner.startswith("{") else re.split(r"[$\s]", inner, maxsplit=1)[0]


_GSM8K = "openai/gsm8k", "main"
_MATH = "DigitalLearningGmbH/MATH-lighteval", "default"

BENCHMARKS = (
    Benchmark(
        "gsm8k",
        "number",
        gsm8k_row,
        (Split((*_GSM8K, "train"), "gsm8k", ("train.jsonl",), 7473),),
        (Split((*_GSM8K, "test"), "gsm8k", ("test.jsonl",), 1319),),
        "OpenAI, arXiv:2110.14168",
        "MIT",
    ),
    Benchmark(
        "math",
        "math",
        math_row,
        (
            Split(
                (*_MATH, "train"),
                "math",
                ("train/*/*.json", "train.jsonl", "train.json", "train_deepscaler.json"),
                7500,
            ),
        ),
        (Split((*_MATH, "test"), "math", ("test/*/*.json", "test.jsonl", "test.json", "test5000.jsonl.gz"), 5000),),
        "Hendrycks et al., arXiv:2103.03874",
        "MIT",
    ),
    Benchmark(
        "math500",
        "math",
        math_row,
        (),
        (Split(("HuggingFaceH4/MATH-500", "default", "test"), "math500", ("math500.jsonl", "test.jsonl"), 500),),
        "OpenAI, arXiv:2305.20050",
        "MIT",
    ),
)
