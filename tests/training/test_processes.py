"""Law 3 over processes: a batch shared out between two gives the completions, gradients and files of one."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from two_processes import SHARDED, config_of, in_processes, look

from hrpo import Rollout
from hrpo.cli.main import COMMANDS
from hrpo.cli.parser import Parser
from hrpo.common import distributed
from hrpo.common.errors import InputError
from hrpo.config.schema import ModelConfig, TrainConfig
from hrpo.storage.run_dir import newest_checkpoint
from hrpo.training.run import Run
from hrpo.training.validate import check_config

QUICK = ["one-prompt", "sharded-lora"]
SLOW = ["full", "lora", "no-reference", "token-mean", "sft", "hidden", "recompute"]
SLOW += [SHARDED + case for case in ("full", "no-reference", "one-prompt", "sft", "hidden", "recompute", "bfloat16")]
LAUNCH = Path("recipes/launch")
BFLOAT16 = 0.2  # nats that rounding makes, at most; see `hrpo.logprobs.QUANTILE_BF16`


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes saw, by case."""
    folder = tmp_path_factory.mktemp("together")
    script = str(Path(__file__).parents[1] / "two_processes.py")

    def seen(case: str) -> tuple[dict, Path]:
        if not (folder / case).is_dir():
            in_processes(2, [script, str(folder), *(QUICK if case in QUICK else SLOW)])
        return torch.load(folder / f"{case}.pt", weights_only=False), folder / case

    return seen


def tensors(run: Path) -> dict[str, torch.Tensor]:
    files = sorted(newest_checkpoint(run).glob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def compare(case: str, seen: dict, run: Path, tmp_path: Path) -> None:
    """Do the same in one process."""
    begun = Run(config_of(case, tmp_path))
    alone = look(begun)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}[begun.model.lm_dtype]
    assert all(seen["sharded"]) if case.startswith(SHARDED) else not any(seen["sharded"])
    if begun.model.lm_dtype == torch.bfloat16:  # extremes of rounding, which is another where blocks are sharded
        for metrics in (*seen["metrics"], *alone["metrics"], seen["stats"], alone["stats"]):
            assert all(
                0 < metrics.pop(name) < BFLOAT16
                for name in ("sampling/sampling_logp_difference/max", "sampling/sampling_logp_difference/p99")
            )
    if "ids" in alone:
        assert torch.equal(seen["ids"], alone["ids"])
        assert torch.equal(seen["mask"], alone["mask"])
        assert seen["stats"] == pytest.approx(alone["stats"], abs=tolerance)
        assert seen["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(seen["gradients"][name], gradient, atol=tolerance, rtol=0, msg=name)
    for row, expected in zip(seen["metrics"], alone["metrics"], strict=True):
        assert row == pytest.approx(expected, abs=tolerance, rel=10 * tolerance)
    assert {path.name for path in run.iterdir()} == {path.name for path in begun.folder.iterdir()}
    saved, expected = tensors(run), tensors(begun.folder)
    assert {name: value.shape for name, value in saved.items()} == {name: x.shape for name, x in expected.items()}
    if begun.model.lm_dtype == torch.float64:
        assert seen["evaluation"] == alone["evaluation"]
        for name, value in expected.items():
            torch.testing.assert_close(saved[name], value, atol=1e-7, rtol=0, msg=name)


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_equal_one(together, case, tmp_path):
    compare(case, *together(case), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_two_processes_equal_one_in_every_way(together, case, tmp_path):
    compare(case, *together(case), tmp_path)


def test_shares_are_even_and_complete():
    for n in range(7):
        for count in (1, 2, 3, 5):
            shares = [distributed.local_slice(n, count, rank) for rank in range(count)]
            assert [place for share in shares for place in share] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_has_nothing_to_gather():
    assert (distributed.count(), distributed.is_main_process(), distributed.gather("x")) == (1, True, ["x"])
    parameter = nn.Parameter(torch.ones(2))
    distributed.sum_gradients([parameter])
    assert parameter.grad is None


def test_rollouts_are_joined_as_if_sampled_at_once():
    trained = {"support_ids": torch.ones(2, 3, 4, dtype=torch.int32), "support_probs": torch.ones(2, 3, 4)}
    rest = {name: torch.ones(2, 3) for name in ("completion_mask", "hybrid_mask", "sample_logprobs", "gate_mean")}
    prompt = torch.tensor([[5, 6, 7]])
    long = Rollout(prompt, torch.ones(1, 3), torch.full((2, 3), 9), **rest, **trained, group_size=2, temperature=1, top_k=4)  # fmt: skip  # noqa: E501
    short = long.select(0, 2)
    short = dataclasses.replace(
        short,
        prompt_ids=prompt[:, 1:],
        prompt_mask=torch.ones(1, 2),
        **{name: value[:, :2] for name, value in vars(short).items() if name in {*rest, *trained, "completion_ids"}},
    )
    joined = Rollout.join([short, long], pad=2)
    assert joined.prompt_ids.tolist() == [[2, 6, 7], [5, 6, 7]]
    assert joined.prompt_mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert joined.completion_ids.tolist() == [[9, 9, 2]] * 2 + [[9, 9, 9]] * 2
    assert joined.gate_mean.tolist() == [[1, 1, 1]] * 4
    assert joined.support_probs[0, 2].tolist() == [0] * 4


def test_quantized_weights_are_not_sharded():
    config = TrainConfig(sharding="fsdp", model=ModelConfig(quantization="4bit"))
    with pytest.raises(InputError, match=r"^sharding: .*model\.quantization"):
        check_config(config)


def test_leaving_says_what_was_said_and_no_farewell():
    code = (
        "import atexit, hrpo.common.distributed as p; atexit.register(print, 'late'); print('said', end=''); p.leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said")


@pytest.mark.slow
def test_bad_input_is_said_once(tmp_path):
    done = subprocess.run(launched("--max_steps=-1", f"--output_dir={tmp_path}"), capture_output=True, text=True)
    assert done.returncode == 1  # the launcher's own
    assert done.stderr.count("hrpo: error: max_steps") == 1
    assert re.search(r"rank +: 0 .*\n +exitcode +: 2", done.stderr)


def launched(*words: str) -> list[str]:
    """The command that recipes/launch/two-cpu-processes.yaml begins with, for another run."""
    first = (LAUNCH / "two-cpu-processes.yaml").read_text().splitlines()[0].removeprefix("# ").split()
    assert first[:2] == ["accelerate", "launch"]
    until = first.index("train") + 1
    return [sys.executable, "-m", "accelerate.commands.accelerate_cli", *first[1:until], *words]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


RUN = ["--model.dtype=float64", "--model.lora_rank=0", "--rollout.prompts_per_step=3", "--rollout.group_size=4"]
RUN += ["--rollout.max_new_tokens=16", "--eval.problems=2", "--check.prompts=2", "--save_every=2", "--max_steps=4"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_launched_and_resumed_with_another_number_of_processes(sharding, tmp_path):
    alone = [sys.executable, "-m", "hrpo", "train", *RUN, f"--output_dir={tmp_path}"]
    subprocess.run([*alone, "--name=one"], check=True, capture_output=True)
    done = subprocess.run(
        launched(*RUN, f"--output_dir={tmp_path}", "--name=two", f"--sharding={sharding}"),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("update 4/4") == 1  # one process prints
    one, two = tmp_path / "one", tmp_path / "two"
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for resume in (launched, lambda *words: [*alone[:4], *words]):
        for name in ("checkpoint-4", "evaluation.json"):
            subprocess.run(["rm", "-r", two / name], check=True)
        words = [*RUN, f"--output_dir={tmp_path}", "--name=two", f"--sharding={sharding}", "--resume"]
        subprocess.run(resume(*words), check=True, capture_output=True)
        for row, expected in zip(rows(two), rows(one), strict=True):
            same = {name for name in expected if "second" not in name}
            assert {name: row[name] for name in same} == pytest.approx({name: expected[name] for name in same})
        saved, expected = tensors(two), tensors(one)
        for name, value in expected.items():
            torch.testing.assert_close(saved[name], value, atol=1e-7, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_dying_ends_the_job(rank, tmp_path):
    words = [*RUN, f"--output_dir={tmp_path}", "--name=run", "--max_steps=100000"]
    with subprocess.Popen(launched(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.is_file() or len(rows(metrics.parent)) < 2:
            assert job.poll() is None
            time.sleep(0.2)
        ranks = {child.environ().get("RANK"): child for child in psutil.Process(job.pid).children(recursive=True)}
        ranks[str(rank)].send_signal(signal.SIGKILL)
        output, _ = job.communicate()
    assert job.returncode == 1
    assert re.search(rf"rank +: {rank} .*\n +exitcode +: -9", output)
    assert all(not child.is_running() for child in ranks.values())


@contextlib.contextmanager
def training(folder: Path):
    """A launched run that has done some updates: the launcher, and its processes by rank."""
    words = [*RUN, f"--output_dir={folder}", "--name=run", "--max_steps=100000", "--save_every=100000"]
    with subprocess.Popen(launched(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        metrics = folder / "run" / "metrics.jsonl"
        while not metrics.is_file() or len(rows(metrics.parent)) < 2:
            assert job.poll() is None
            time.sleep(0.2)
        ranks = {child.environ().get("RANK"): child for child in psutil.Process(job.pid).children(recursive=True)}
        ranks = {rank: ranks[rank] for rank in "01"}
        yield job, ranks
        _, alive = psutil.wait_procs(ranks.values(), timeout=60)
        for process in alive:
            process.kill()
        assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stopped_process_ends_the_job(rank, tmp_path):
    with training(tmp_path) as (job, ranks):
        ranks[rank].suspend()
        output, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert output.count(f"hrpo: stopped: process {ranks[rank].pid} has been stopped for 10 seconds") == 1


@pytest.mark.slow
def test_a_killed_launcher_ends_the_run_which_saves(tmp_path):
    with training(tmp_path) as (job, _):
        job.kill()
        output, _ = job.communicate(timeout=60)
    assert "hrpo: the launcher has died, so the run ends" in output
    assert "hrpo: interrupted; nothing is lost" in output
    assert newest_checkpoint(tmp_path / "run").name == f"checkpoint-{len(rows(tmp_path / 'run'))}"


def watching(launcher: int, other: int, *, leads: bool) -> subprocess.CompletedProcess:
    """Let a process watch another one and its launcher (0 is the real one), and do nothing else."""
    code = f"""
import os
from hrpo.common import watchdog
watchdog.TICK = 0.01
own = os.getpid()
watchdog.watch({launcher} or os.getppid(), [{other}, own], own if {leads} else {other})
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_the_watch_ends_what_waits_for_a_stopped_process():
    with subprocess.Popen(["sleep", "600"]) as other:
        other.send_signal(signal.SIGSTOP)
        done = watching(0, other.pid, leads=False)
        other.kill()
    assert done.returncode == 3
    assert done.stderr.startswith(f"hrpo: stopped: process {other.pid} has been stopped for 0.1 seconds; --resume")
    assert done.stderr.count("\n") == 1


def test_the_watch_tells_the_first_process_that_the_launcher_has_died():
    done = watching(2**22 + 1, os.getpid(), leads=True)
    number = signal.SIGTERM if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else signal.SIGHUP  # under nohup
    assert (done.returncode, done.stderr) == (-number, "hrpo: the launcher has died, so the run ends\n")


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.yaml")), ids=lambda file: file.stem)
def test_launch_files_are_accelerates(file):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    settings = load_config_from_file(str(file))
    assert settings.num_processes == {"one-gpu": 1, "eight-gpus": 8, "two-nodes": 16, "two-cpu-processes": 2}[file.stem]
    head = file.read_text().split("\ncompute_environment")[0]
    words = shlex.split(head.splitlines()[0].removeprefix("# "))
    assert words[:4] == ["accelerate", "launch", "--config_file", str(file)]
    launch_command_parser().parse_args(words[2:])
    hrpo = words[words.index("-m") + 1 :]
    assert hrpo[:2] == ["hrpo", "train"]
    parser = Parser(prog="hrpo train")
    COMMANDS["train"][0](parser)
    parser.parse_args(hrpo[2:])
    assert ("Not yet run." in head) == (file.stem != "two-cpu-processes")
