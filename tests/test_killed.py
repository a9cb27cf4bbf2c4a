"""A run killed at any moment and resumed each time ends as one that was left alone, bit for bit."""

import json
import multiprocessing
import random
import shlex
import time
from pathlib import Path

import pytest

from hrpo.checkpoints import checkpoints
from hrpo.cli import main

UPDATES = 12
COMMAND = f"train --name run --updates {UPDATES} --save_every 2 --rollout.prompts 2 --rollout.group_size 4"
COMMAND += " --rollout.max_new_tokens 24 --latent.r_min 0.9 --model.lora_rank 0 --optimizer.lr 1e-4 --loss.beta 0.01"
COMMAND += " --eval.problems 8 --check.prompts 2 --keep.last 2 --keep.best 1 --keep.problems 8 --seed 1"
MOST_SECONDS = 120  # that one start may take

# Libraries are loaded once, in a process that every run is a fork of.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["hrpo.run", "transformers.models.llama.modeling_llama", "peft", "hrpo.compare"])


def start(folder: Path, *words: str) -> multiprocessing.Process:
    process = FORKS.Process(target=main, args=([*shlex.split(COMMAND), "--folder", str(folder), *words],))
    process.start()
    return process


def finished(process) -> int:
    process.join(MOST_SECONDS)
    return process.exitcode


def draft(run: Path) -> bool:
    """Whether a checkpoint is being written: its folder has a name that no reader takes."""
    return any(run.glob("checkpoint-*.tmp"))


def kill(process, run: Path, seconds: float, *, in_write: bool) -> bool:
    """Kill after so many seconds, or so many after a checkpoint began to be written; whether it was cut short."""
    end = time.monotonic() + MOST_SECONDS
    while in_write and not draft(run) and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.0005)
    process.join(seconds)
    process.kill()
    process.join()
    return draft(run)


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that is never killed, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("whole")
    finished(start(folder, "--dry-run"))  # the libraries are loaded
    began = time.monotonic()
    assert finished(start(folder)) == 0
    left = outcome(folder / "run")
    assert [row["step"] for row in left["metrics.jsonl"]] == list(range(1, UPDATES + 1))
    assert [row["step"] for row in left["validation.jsonl"]] == list(range(2, UPDATES + 1, 2))
    return left, time.monotonic() - began


def killed_and_resumed(whole, folder: Path, kills: int, seed: int) -> None:
    left, seconds = whole
    run, rng, cut, words = folder / "run", random.Random(seed), 0, []
    for number in range(kills):
        in_write = number % 3 != 2
        process = start(folder, *words)
        cut += kill(process, run, rng.uniform(0, 0.03 if in_write else 0.8 * seconds), in_write=in_write)
        words = ["--resume"] if (run / "config.yaml").exists() else []
    assert finished(start(folder, *words)) == 0
    assert cut > 0  # killed within the write of a checkpoint
    assert outcome(run) == left


def test_killed_five_times(whole, tmp_path):
    killed_and_resumed(whole, tmp_path, 5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_killed_twenty_five_times(whole, tmp_path, seed):
    killed_and_resumed(whole, tmp_path, 25, seed)
