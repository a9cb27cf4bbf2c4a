"""A run killed at any moment and resumed each time ends as one that was left alone, bit for bit."""

import json
import multiprocessing
import random
import shlex
import signal
import time
from pathlib import Path

import pytest

from hrpo.cli.main import main
from hrpo.storage.run_dir import checkpoints

COMMAND = "train --name run --save_every 2 --rollout.prompts_per_step 2 --rollout.group_size 4"
COMMAND += " --rollout.max_new_tokens 24 --latent.r_min 0.9 --model.lora_rank 0 --optimizer.lr 1e-4 --loss.beta 0.01"
COMMAND += " --eval.problems 8 --check.prompts 2 --keep.save_total_limit 2 --keep.best 1 --keep.problems 8 --seed 1"

# Libraries are loaded once, in a process that every run is a fork of.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["hrpo.training.train", "transformers.models.llama.modeling_llama", "peft", "hrpo.experiments.sweep"]
)


def start(folder: Path, *words: str) -> multiprocessing.Process:
    process = FORKS.Process(target=main, args=([*shlex.split(COMMAND), "--output_dir", str(folder), *words],))
    process.start()
    return process


def finished(process) -> int:
    process.join()
    return process.exitcode


def draft(run: Path) -> bool:
    """Whether a checkpoint is being written: its folder has a name that no reader takes."""
    return any(run.glob("checkpoint-*.tmp"))


def updates_of(run: Path) -> int:
    """How many updates are logged."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def kill(process, run: Path, seconds: float, *, in_write: bool, at_most: int) -> tuple[bool, bool]:
    """Kill after so many seconds, or so many after a checkpoint began to be written; after so many updates at once.

    Returns:
        Whether the run had not ended by itself, and whether the write of a checkpoint was cut short.

    """
    while in_write and not draft(run) and process.is_alive():
        time.sleep(0.0005)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_alive() and updates_of(run) < at_most:
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL, draft(run)


def outcome(run: Path) -> dict:
    """Everything that a run leaves, but for seconds: weights, optimizer and step by their checksums."""

    def rows(path):
        return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in path.open()]

    found = {path.name: rows(path) for path in run.glob("*.jsonl")}
    found |= {path.name: (path / "SHA256SUMS").read_text() for path in checkpoints(run).values()}
    found["evaluation"] = json.loads((run / "evaluation.json").read_text())
    found["best"] = (run / "best").readlink()
    found["folder"] = sorted(path.name for path in run.iterdir())
    return found


@pytest.mark.parametrize(("updates", "kills", "seed"), [(8, 3, 0), pytest.param(100, 25, 1, marks=pytest.mark.slow)])
def test_killed_and_resumed(tmp_path, updates, kills, seed):
    """Two kills of three in the write of a checkpoint or just after it, the third anywhere."""
    options, rng = [f"--max_steps={updates}"], random.Random(seed)
    assert finished(start(tmp_path / "whole", *options, "--dry-run")) == 0  # the libraries are loaded
    began = time.monotonic()
    assert finished(start(tmp_path / "whole", *options)) == 0
    seconds = min(time.monotonic() - began, 8.0)
    whole = outcome(tmp_path / "whole" / "run")
    assert [row["step"] for row in whole["metrics.jsonl"]] == list(range(1, updates + 1))
    assert [row["step"] for row in whole["validation.jsonl"]] == list(range(2, updates + 1, 2))

    run, killed = tmp_path / "killed" / "run", list[tuple[bool, bool]]()
    for number in range(kills):
        in_write = number % 3 != 2
        process = start(run.parent, *options)
        wait = rng.uniform(0, 0.03 if in_write else 0.8 * seconds)
        share = updates * (number + 1) // (kills + 1)  # of the updates, so that some are left for all other kills
        killed.append(kill(process, run, wait, in_write=in_write, at_most=share))
        options = [*options[:1], *(["--resume"] if (run / "config.yaml").exists() else [])]
    assert finished(start(run.parent, *options)) == 0
    alive, cut = map(sum, zip(*killed, strict=True))
    print(f"{alive} of {kills} kills found it running, {cut} of them in the write of a checkpoint")
    assert alive == kills
    assert cut > 0
    assert outcome(run) == whole
