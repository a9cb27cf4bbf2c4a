"""Watch a long run of small updates: whether it grows, and whether it slows down.

    python -m benchmarks.soak [--updates N] [--plot FILE] [--json FILE]

Runs `hrpo train` on the embedded model, 16 completions an update, and looks at it from outside every second: resident
memory, open files, processor time. Prints the slope of the memory after a warm-up of a tenth of the updates, and the
throughput of the last tenth over that of the first, in tokens for a second of processor time, so that other work on the
machine does not count. The learning rates are 0, so that
the completions of the last updates are of the same kind as those of the first, and cost the same.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RUN = {
    "name": "soak",
    "model.lora_rank": "0",
    "rollout.prompts_per_step": "2",
    "rollout.group_size": "8",
    "rollout.max_new_tokens": "64",
    "optimizer.lr": "0",
    "optimizer.gate_lr": "0",
    "optimizer.lambda_lr": "0",
    "check.patience": "0",
    "eval.problems": "0",
    "save_every": "500",
}
EVERY = 1.0  # seconds between two looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        looks, metrics = watch(options.updates, Path(folder))
    numbers = summarize(looks, metrics)
    for name, value in numbers.items():
        print(f"{name}: {value:,.4g}")
    if options.plot:
        plot(looks, metrics, numbers, options.plot)
    if options.json:
        options.json.write_text(json.dumps({**numbers, "looks": looks}) + "\n")


def watch(updates: int, folder: Path) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Run, and return what was seen from outside, by update, and the run's metrics."""
    words = [f"--{name}={value}" for name, value in {**RUN, "output_dir": folder, "max_steps": updates}.items()]
    command = [sys.executable, "-c", "from hrpo.cli.main import main; main()", "train", *words]
    looks: list[dict[str, float]] = []
    lines = folder / "soak" / "metrics.jsonl"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(EVERY)
            done = lines.read_text().count("\n") if lines.is_file() else 0
            look = look_at(process.pid)
            if done and look:
                looks.append({"update": done, **look})
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return looks, [json.loads(line) for line in lines.read_text().splitlines()]


def look_at(pid: int) -> dict[str, float] | None:
    """Return resident megabytes, open files and processor seconds of a process; None where it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in fields:
        return None
    seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return {"megabytes": int(fields["VmRSS"].split()[0]) / 1e3, "files": files, "seconds": seconds}


def summarize(looks: list[dict[str, float]], metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Return the numbers that count."""
    tenth = len(metrics) // 10
    warm = [look for look in looks if look["update"] > tenth]
    updates, megabytes = (np.array([look[name] for look in warm]) for name in ("update", "megabytes"))
    slope = np.polyfit(updates, megabytes, 1)[0]
    files = [look["files"] for look in warm]
    speeds = throughputs(looks, metrics, tenth)
    early, late = speeds[0][1], speeds[-1][1]
    return {
        "updates": len(metrics),
        "minutes of processor time": looks[-1]["seconds"] / 60,
        "megabytes after a tenth": megabytes[0],
        "megabytes at the end": megabytes[-1],
        "slope, megabytes per 1,000 updates": 1000 * slope,
        "open files, least": min(files),
        "open files, most": max(files),
        "tokens per processor second, first tenth": early,
        "tokens per processor second, last tenth": late,
        "last tenth / first": late / early,
    }


def throughputs(looks: list[dict[str, float]], metrics: list[dict[str, Any]], size: int) -> list[tuple[float, float]]:
    """Return (last update, tokens for a second of processor time) of each stretch of so many updates."""
    tokens = np.concatenate([[0], np.cumsum([row["tokens"] for row in metrics])])
    found = []
    for start in range(0, len(metrics) - size + 1, size):
        seen = [look for look in looks if start <= look["update"] <= start + size]
        if len(seen) > 1:
            written = tokens[int(seen[-1]["update"])] - tokens[int(seen[0]["update"])]
            found.append((seen[-1]["update"], float(written / (seen[-1]["seconds"] - seen[0]["seconds"]))))
    return found


def plot(looks: list[dict[str, float]], metrics: list[dict[str, Any]], numbers: dict[str, float], path: Path) -> None:
    """Draw memory, open files and throughput over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    memory, files, speed = figure.subplots(1, 3)
    updates = [look["update"] for look in looks]
    memory.plot(updates, [look["megabytes"] for look in looks], color="#0072B2", lw=1)
    slope = numbers["slope, megabytes per 1,000 updates"]
    memory.set_title(f"memory (MB), {slope:+.1f} per 1,000 updates", fontsize=9, loc="left")
    files.plot(updates, [look["files"] for look in looks], color="#0072B2", lw=1)
    files.set_title("open files", fontsize=9, loc="left")
    step = max(1, len(metrics) // 30)
    speed.plot(*zip(*throughputs(looks, metrics, step), strict=True), color="#0072B2", lw=1)
    speed.set_title("tokens for a second of processor time", fontsize=9, loc="left")
    for panel in (memory, files, speed):
        panel.set_ylim(bottom=0)
        panel.set_xlabel("update")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
