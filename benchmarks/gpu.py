"""Rollouts, updates and steps on a GPU, one benchmark after the other, within ten minutes.

    python -m benchmarks.gpu [--model FOLDER]

Each prints its tables when it ends; `python -m benchmarks.NAME --device cuda` runs one of them alone, and longer.
"""

import argparse
import subprocess
import sys

MINUTES = {"rollout": 2.5, "update": 2.0, "step": 4.0}
RUNS = 3


def main() -> None:
    """Run them; each prints its tables. One that fails does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a folder, or a name from `hrpo model`")
    model = parser.parse_args().model
    failed = []
    for name, minutes in MINUTES.items():
        options = ["--device", "cuda", "--runs", str(RUNS), "--minutes", str(minutes), "--model", model]
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
