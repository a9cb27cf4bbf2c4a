"""Peers in turn, medians and ratios, peak memory, tables and JSON: what all benchmarks share."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hrpo import HybridCausalLM
from hrpo.chat import encode
from hrpo.common import files
from hrpo.common.errors import InputError
from hrpo.common.memory import peak_memory
from hrpo.models.names import resolve
from hrpo.tasks.base import SYSTEM_PROMPT, ask, make_preamble

PROBLEMS = Path(__file__).parent / "problems.txt"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
SLOW_SECONDS, SLOW_RUNS = 60, 3
CLEAR_REFS = Path("/proc/self/clear_refs")  # of Linux
console = Console(width=140)


def parse(description: str, *, runs: int = 5, tokens: int = 0, **paths: str) -> argparse.Namespace:
    """Read the options that all benchmarks share, and set the number of threads.

    Args:
        description: what `--help` begins with.
        runs: default of `--runs`.
        tokens: default of `--tokens`; 0 where completions are of a fixed length.
        paths: names of further options that take a file, and what they are for.

    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--prompts", type=Path, default=PROBLEMS, help="a file of problems, one a line")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--runs", type=int, default=runs, help="timed runs of each peer, after one warm-up")
    parser.add_argument("--minutes", type=float, default=14, help="leave out runs that would end later than that")
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", default="smollm2-135m", help="a folder, or a name from `hrpo model`")
    if tokens:
        parser.add_argument("--tokens", type=int, default=tokens, help="the most of a completion")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for name, purpose in paths.items():
        parser.add_argument(f"--{name}", type=Path, help=purpose)
    options = parser.parse_args()
    if not options.prompts.is_file():
        parser.error(f"--prompts: there is no file {options.prompts}; name one with a problem a line")
    try:
        folder = resolve(options.model)
    except InputError as error:
        parser.error(str(error).replace("model.name", "--model"))
    if not Path(folder).is_dir():
        parser.error(f"--model: there is no folder {folder}; name one, or a model from `hrpo model`")
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # trainers would take a GPU where there is one
    options.deadline = time.perf_counter() + 60 * options.minutes
    torch.set_num_threads(options.threads)
    options.dtypes = list(DTYPES) if options.dtype == "both" else [options.dtype]
    return options


def problems(file: Path) -> list[str]:
    """Return the problems of a file, one a line."""
    return [line for line in file.read_text().splitlines() if line.strip()]


def conversation(problem: str) -> list[dict[str, str]]:
    """Return a problem as training asks it."""
    return ask(make_preamble(SYSTEM_PROMPT, []), problem)


def prompt_ids(tokenizer: Any, file: Path, count: int) -> list[list[int]]:
    """Return the token ids of the first problems of a file."""
    return encode(tokenizer, [conversation(problem) for problem in problems(file)[:count]])


def bare_model(name: str, dtype: str, device: str) -> HybridCausalLM:
    """Return a model with a fresh gate and no adapter, its weights in `dtype` as for inference."""
    torch.manual_seed(0)
    model = HybridCausalLM.from_pretrained(name)
    return HybridCausalLM(
        model.lm.to(getattr(torch, DTYPES[dtype])).requires_grad_(False), model.gate, model.settings, model.tokenizer
    ).to(device)


def clock() -> float:
    """Return the time in seconds, after all that a GPU in use has been asked to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def share(options: argparse.Namespace, part: float) -> float:
    """Return the time by which to end what may take this part of the time that is left."""
    now = time.perf_counter()
    return now + part * (options.deadline - now)


def compare(peers: dict[str, Callable[[], float]], runs: int, until: float) -> dict[str, list[float]]:
    """Run the peers in turn, one warm-up round and then `runs`, as far as there is time; seconds of each run.

    A peer returns its own seconds. One whose warm-up takes long gets fewer runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    wanted = dict.fromkeys(peers, runs)
    round_seconds = 0.0
    for turn in range(runs + 1):
        start = time.perf_counter()
        if turn > 1 and start + round_seconds > until:
            break
        for name, peer in peers.items():
            if len(seconds[name]) >= wanted[name]:
                continue
            took = peer()
            if turn:
                seconds[name].append(took)
            elif took > SLOW_SECONDS:
                wanted[name] = min(runs, SLOW_RUNS)
            note(name, turn, took)
        round_seconds = time.perf_counter() - start
    return seconds


def note(name: str, turn: int, seconds: float) -> None:
    """Say on stderr how long a run took; turn 0 is the warm-up."""
    print(f"{f'run {turn}' if turn else 'warm-up'} {name}: {seconds:.2f} s", file=sys.stderr, flush=True)


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median seconds of each peer."""
    return {name: median(values) for name, values in seconds.items()}


def spread(values: Sequence[float]) -> str:
    """Return the range of some seconds and how many there are."""
    return f"{min(values):.2f} to {max(values):.2f} ({len(values)})"


class Peer:
    """A peer in a process of its own, where no other's libraries, allocator and heap reach it; it works when asked.

    Args:
        module: what the process runs: `python -m module arguments`. It has an `Asked`.
        arguments: of the command.

    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.command = [sys.executable, "-m", module, *arguments]
        self.process: subprocess.Popen[str] | None = None

    def ask(self, **numbers: float) -> dict[str, float]:
        """Let it work once, started if it has not been yet, and return what it answers."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError):
            requests.write(json.dumps(numbers) + "\n")
            requests.flush()
        line = answers.readline()
        if not line:
            sys.exit(f"a peer has ended, for what it says above: {' '.join(self.command)}")
        return dict(json.loads(line))

    def __enter__(self) -> "Peer":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        if self.process is None:
            return
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self.process.communicate(timeout=20)  # closes its input: it ends by itself, and takes its files with it
        self.process.kill()
        self.process.wait()


class Asked:
    """The other side of a `Peer`. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> dict[str, float]:
        """Return what comes with the next request; nobody asks any more: the process ends."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        return dict(json.loads(line))

    def answer(self, **numbers: float) -> None:
        """Send numbers, and the peak of memory so far."""
        self.answers.write(json.dumps({**numbers, "peak_gigabytes": peak_gigabytes()}) + "\n")
        self.answers.flush()


def forget_peak() -> None:
    """Begin anew with the peak, where that can be: what loading a model took is no step's."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        CLEAR_REFS.write_text("5")
    except OSError:  # no Linux, or one that does not let us
        print("peaks count from the start of each process: they cannot be reset here", file=sys.stderr)


def peak_gigabytes() -> float:
    """Return the peak memory of this process since `forget_peak`: that of the GPU in use, else resident memory."""
    return peak_memory(torch.device("cuda" if torch.cuda.is_initialized() else "cpu")) / 1e9


def lengths_note(lengths: Sequence[int]) -> str:
    """Return mean, spread and longest of completion lengths in a few words."""
    rows = sorted(lengths)
    middle = rows[len(rows) // 2]
    mean = sum(rows) / len(rows)
    return f"mean {mean:.0f}, median {middle}, {rows[0]} to {rows[-1]}, mean / longest {mean / rows[-1]:.2f}"


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    return {
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}),
        "cpu": names[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **packages,
        "date": str(date.today()),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def finish(options: argparse.Namespace, ratios: dict[str, float], details: dict[str, Any]) -> None:
    """Print the ratios, if any, and the machine, and write the JSON that was asked for."""
    facts = machine()
    if ratios:
        show("ratios", ["", "ratio"], [(name, f"{value:.2f}") for name, value in ratios.items()])
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if options.json:
        result = {"ratios": ratios, "machine": facts, **details}
        files.write_text(options.json, json.dumps(result, indent=2) + "\n")
