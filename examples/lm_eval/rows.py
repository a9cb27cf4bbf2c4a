"""Write sums.jsonl, the problems of both tasks beside this file: python examples/lm_eval/rows.py [HOW_MANY]."""

import json
import sys
from pathlib import Path

from hrpo.config.schema import TaskConfig
from hrpo.tasks import load_task

with Path("sums.jsonl").open("w") as file:
    for example in load_task(TaskConfig("arithmetic"), seed=0).test[: int((sys.argv[1:] or [200])[0])]:
        work, gold = example.solution.rpartition("#### ")[0], int(example.gold)
        choices = [f"{work}#### {answer}" for answer in (gold, gold + 1, gold - 1, gold + 10)]
        row = {"prompt": f"{example.question}=\n", "answer": example.gold, "choices": choices}
        file.write(json.dumps(row) + "\n")
