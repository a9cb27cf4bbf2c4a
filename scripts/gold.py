"""Score every gold answer of every row of a folder of benchmarks, and a wrong one: python scripts/gold.py FOLDER.

For each file: rows, gold answers (all that are accepted), rows without an answer, gold answers that do not score 1, and
swapped ones (another row's, not equal) that do not score 0. Pairs of formulas that are called equal without being the
same text are listed; someone has to look at them.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hrpo.tasks import BENCHMARKS, judge
from hrpo.tasks.base import Example
from hrpo.tasks.benchmark import parsed
from hrpo.tasks.judge import normalise_answer, plain_tex
from hrpo.tasks.number import last_number
from hrpo.tasks.row_files import read

FILES = {
    "gsm8k": ["gsm8k/train.jsonl", "gsm8k/test.jsonl"],
    "math": ["math/train_deepscaler.json", "math/test5000.jsonl.gz"],
    "math500": ["math500/math500.jsonl"],
    "mmlu_stem": ["mmlu/mmlu_stem_test.jsonl"],
    "mmlu_arc": ["mmlu/dev/*.csv", "mmlu/val/*.csv"],
    "arc_challenge": [
        "arc_challenge/train.json",
        "arc_challenge/test.json",
        "arc_challenge/arc_challenge_llmfoundry.jsonl",
    ],
    "nq": [
        "nq_open/NQ-open.dev.jsonl",
        "nq_open/NQ-open.efficientqa.dev.1.1.jsonl",
        "nq_open/topics.dpr.nq.dev.txt",
        "nq_open/natural_questions_openbook_short.jsonl",
    ],
    "triviaqa": ["triviaqa/topics.dpr.trivia.dev.txt.gz", "triviaqa/triviaqa_sm_sub.jsonl"],
    "hotpotqa": [
        "hotpotqa/hotpot_dev_v1_simplified.json",
        "hotpotqa/dev_subsampled_ircot.jsonl",
        "hotpotqa/hotpotqa_train_hipporag.json",
        "hotpotqa/hotpotqa_searcho1_500.json",
    ],
    "2wikimultihopqa": ["2wikimultihopqa/2wiki_dev_qa.json.gz", "2wikimultihopqa/2wiki_searcho1_500.json"],
    "bamboogle": ["bamboogle/bamboogle.json"],
}


def forms(kind: str, gold: str) -> object:
    """Return what two equal answers share."""
    if kind == "number":
        return last_number(gold)
    if kind == "math":
        return plain_tex(gold)
    return (normalise_answer(gold) or gold) if kind == "qa" else gold


def golds_of(example: Example) -> list[str]:
    """Return every accepted answer."""
    return [example.gold] if isinstance(example.gold, str) else example.gold


def swaps(kind: str, examples: list[Example]) -> Iterator[tuple[Example, str]]:
    """Yield each problem with an answer of the next one that has none in common with it."""
    for place, example in enumerate(examples):
        own = {forms(kind, gold) for gold in golds_of(example)}
        for step in range(1, len(examples)):
            other = golds_of(examples[(place + step) % len(examples)])[0]
            if forms(kind, other) not in own:
                yield example, other
                break


def main(folder: Path) -> int:
    """Print a line a file; return how many answers were judged wrongly."""
    wrong = 0
    print("task             file                                              rows  golds  none  gold<1  swapped>0  s")
    for name, patterns in FILES.items():
        benchmark = BENCHMARKS[name]
        for pattern in patterns:
            start = time.perf_counter()
            rows = [row for path in sorted(folder.glob(pattern)) for row in read(path)]
            examples, none = parsed(benchmark, rows)
            golds = [(example, gold) for example in examples for gold in golds_of(example)]
            missed = [pair for pair in golds if not judge(benchmark.kind, f"#### {pair[1]}", pair[0].gold).strict]
            found = [
                pair
                for pair in swaps(benchmark.kind, examples)
                if judge(benchmark.kind, f"#### {pair[1]}", pair[0].gold).lenient
            ]
            seconds = time.perf_counter() - start
            print(
                f"{name:16} {pattern:49} {len(rows):5} {len(golds):6} {none:5} {len(missed):7} {len(found):10} "
                f"{seconds:.1f}",
                flush=True,
            )
            for label, pairs in (("gold", missed), ("swap", found)):
                for example, answer in pairs:
                    print(f"    {label}: {answer!r} for {example.gold!r}: {example.question[:60]!r}")
            wrong += len(missed) + (len(found) if benchmark.kind != "math" else 0)
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
