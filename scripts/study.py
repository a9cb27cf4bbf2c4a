"""What changes while arms of a comparison train: python scripts/study.py docs/study hybrid discrete.

From the results that `hrpo compare` kept: each metric's mean over the first and the last ten updates, and its change
with a 95 % interval over the seeds.
"""

import json
import sys
from pathlib import Path

from hrpo.statistics import mean_interval

METRICS = {"reward": 3, "length": 1, "hidden_ratio": 4, "kl": 3}  # with the digits that are shown
WINDOW = 10

folder, *arms = sys.argv[1:]
print("| arm | metric | first ten updates | last ten | change [95 %] | seeds |\n|---|---|---|---|---|---|")
for arm in arms:
    paths = sorted(path for path in Path(folder).glob(f"{arm}-*.json") if path.stem.rpartition("-")[0] == arm)
    runs = [json.loads(path.read_text())["metrics"] for path in paths]
    for name, digits in METRICS.items():
        first = [sum(run[name][:WINDOW]) / WINDOW for run in runs]
        last = [sum(run[name][-WINDOW:]) / WINDOW for run in runs]
        change = [after - before for before, after in zip(first, last, strict=True)]
        low, high = mean_interval(change)
        means = [f"{sum(values) / len(values):.{digits}f}" for values in (first, last)]
        middle = f"{sum(change) / len(change):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        print(f"| {arm} | {name} | {' | '.join(means)} | {middle} | {len(runs)} |")
