"""Damaged checkpoints, signals, a full disk, which checkpoints stay, and that a run repeats itself bit for bit."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hrpo import HybridCausalLM
from hrpo.cli.main import main
from hrpo.common import files
from hrpo.common.console import console
from hrpo.common.errors import InputError, StoppedError
from hrpo.common.signals import SIGNALS
from hrpo.config.schema import (
    CheckConfig,
    CheckpointConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
    TaskConfig,
    TrainConfig,
)
from hrpo.storage.retention import prune
from hrpo.storage.run_dir import SUMS_FILE, checkpoints, model_in, verify, write_checksums
from hrpo.tasks import load_task
from hrpo.tasks.base import dedup_key
from hrpo.tasks.held_out import hold_out
from hrpo.trainer import Trainer
from hrpo.training.run import Run
from hrpo.training.train import train


def slow(*values) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


def settings(folder: Path) -> TrainConfig:
    return TrainConfig(
        name="run",
        output_dir=str(folder),
        max_steps=6,
        save_every=2,
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=2, group_size=4, max_new_tokens=16),
        loss=LossConfig(beta=0.01),
        sft=SftConfig(batch=4),
        optimizer=OptimizerConfig(lr=1e-4),
        check=CheckConfig(prompts=0),
        eval=EvalConfig(problems=2),
    )


@pytest.fixture
def config(tmp_path):
    return settings(tmp_path)


@pytest.fixture(scope="module")
def never(tmp_path_factory):
    """The run folder of the same, never stopped."""
    run = settings(tmp_path_factory.mktemp("never"))
    train(run)
    return run.run_folder


def outcome(run: Path) -> dict:
    def rows(path):
        return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in path.open()]

    found = {path.name: rows(path) for path in run.glob("*.jsonl")}
    found["checkpoint"] = (next(iter(checkpoints(run).values())) / SUMS_FILE).read_text()
    return found | {"evaluation": json.loads((run / "evaluation.json").read_text())}


def words(config: TrainConfig) -> list[str]:
    """The command line of a run that has begun."""
    return ["train", "--config", str(config.run_folder / "config.yaml")]


# ---- the same numbers again --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "lora_rank"), [slow("hrpo", 0), ("hrpo", 4), ("sft", 0), slow("sft", 4)])
def test_the_same_run_twice(config, tmp_path, objective, lora_rank):
    config = dataclasses.replace(
        config, max_steps=2, algorithm=objective, model=ModelConfig(lora_rank=lora_rank), eval=EvalConfig(problems=1)
    )
    runs = [dataclasses.replace(config, output_dir=str(tmp_path / name)) for name in "ab"]
    for run in runs:
        train(run)
    assert outcome(runs[0].run_folder) == outcome(runs[1].run_folder)


def test_other_threads_are_told(config, capsys, monkeypatch):
    begun = Run(config)
    begun.save()
    Run(config, resume=True)
    assert "threads" not in capsys.readouterr().err
    monkeypatch.setattr("torch.get_num_threads", lambda: 999)
    Run(config, resume=True)
    assert "now 999: the same numbers but for rounding" in capsys.readouterr().err


# ---- damaged checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and a copy of it to damage for each test: its settings, and what it left."""
    folder = tmp_path_factory.mktemp("trained")
    words = "train --name run --max_steps 4 --save_every 2 --rollout.prompts_per_step 2 --rollout.group_size 4"
    words += " --check.prompts 0"
    main([*words.split(), "--rollout.max_new_tokens", "16", "--eval.problems", "2", "--output_dir", str(folder)])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "one bit": lambda c: flip(c / "adapter_model.safetensors"),
    "one bit of the optimizer": lambda c: flip(c / "optimizer.safetensors"),
    "edited": lambda c: (c / "hybrid.json").write_text((c / "hybrid.json").read_text().replace("0.5", "0.6")),
    "cut": lambda c: os.truncate(c / "gate.safetensors", 100),
    "empty": lambda c: os.truncate(c / "trainer.json", 0),
    "a file is gone": lambda c: (c / "tokenizer.json").unlink(),
    "a folder in its place": lambda c: ((c / "trainer.json").unlink(), (c / "trainer.json").mkdir()),
    "checksums are cut": lambda c: os.truncate(c / SUMS_FILE, 200),
    "checksums are empty": lambda c: os.truncate(c / SUMS_FILE, 0),
    "checksums are gone": lambda c: (c / SUMS_FILE).unlink(),
    "checksums are no text": lambda c: (c / SUMS_FILE).write_bytes(b"\xff\xfe\x00"),
    "checksums of other things": lambda c: (c / SUMS_FILE).write_text("x\n" * 5),
    "checksums of what is elsewhere": lambda c: (c / SUMS_FILE).write_text("0  /dev/zero\n0  ../../config.yaml\n"),
    "checksums of a long name": lambda c: (c / SUMS_FILE).write_text("0  " + "x" * 5000 + "\n"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_recognised(run, capsys, how):
    newest = run / "checkpoint-4"
    assert verify(newest) is None
    DAMAGES[how](newest)
    assert verify(newest) is not None
    assert model_in(str(run)) == str(run / "checkpoint-2")
    assert f"{newest} is damaged" in (said := capsys.readouterr().err)
    assert said.endswith("going back to checkpoint-2\n")
    DAMAGES[how](run / "checkpoint-2")
    with pytest.raises(InputError, match=r"^model.name: .*checkpoint-4 is damaged .*checkpoint-2 is damaged"):
        model_in(str(run))


def test_checksums_are_those_of_sha256sum(run):
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=run / "checkpoint-4", check=True)
    assert done.returncode == 0
    listed = {line.split("  ", 1)[1] for line in (run / "checkpoint-4" / SUMS_FILE).read_text().splitlines()}
    assert listed == {path.name for path in (run / "checkpoint-4").iterdir()} - {SUMS_FILE}


def test_a_run_goes_back_from_a_damaged_checkpoint(trained, run, capsys):
    flip(run / "checkpoint-4" / "optimizer.safetensors")
    (run / "checkpoint-3.tmp").mkdir()  # of killed writes
    (run / "checkpoint-1.replaced").mkdir()
    main(["train", "--config", str(run / "config.yaml"), "--output_dir", str(run.parent), "--resume"])
    assert "checkpoint-4 is damaged (optimizer.safetensors is not as" in capsys.readouterr().err
    assert outcome(run) == outcome(trained / "run")
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-4.damaged"}
    assert verify(run / "checkpoint-4") is None


def test_where_no_checkpoint_is_whole_nothing_is_thrown_away(run, capsys):
    for checkpoint in checkpoints(run).values():
        flip(checkpoint / "gate.safetensors")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    command = ["train", "--config", str(run / "config.yaml"), "--output_dir", str(run.parent), "--resume"]
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code == 2
    assert "there is no other; put one back, or delete them all" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(("name", "value"), [("exp_avg_sq", -1.0), ("exp_avg_sq", float("inf")), ("step", -1.0)])
def test_an_optimizer_that_no_update_makes_is_refused(run, capsys, name, value):
    """Its checksums are right: it was spoilt before it was written."""
    path = run / "checkpoint-4" / "optimizer.safetensors"
    state = load_file(path)
    state[f"0.{name}"].fill_(value)
    save_file(state, path)
    write_checksums(path.parent)
    with pytest.raises(SystemExit):
        main(["train", "--config", str(run / "config.yaml"), "--output_dir", str(run.parent), "--resume"])
    assert f"optimizer.safetensors is damaged (0.{name} has values that no update makes)" in capsys.readouterr().err


# ---- a folder takes another's place ------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_renames_loses_nothing(tmp_path, monkeypatch, renames):
    place, left, rename = tmp_path / "it", [renames], Path.rename
    with files.new_folder(place) as draft:
        (draft / "a").write_text("old")
        (draft / "mine").mkdir()
        (draft / "mine" / "b").write_text("mine")

    def killed(self, target):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return rename(self, target)

    def save(text):
        with files.new_folder(place) as draft:
            (draft / "a").write_text(text)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    if renames < 2:
        with pytest.raises(Killed):
            save("new")
    else:
        save("new")  # killed before it could clear the old one away
    monkeypatch.undo()
    whole = place if place.exists() else tmp_path / "it.replaced"
    assert (whole / "a").read_text() == ("new" if renames == 2 else "old")
    assert (whole / "mine" / "b").read_text() == "mine"
    with pytest.raises(OSError, match="broken"), files.new_folder(place):
        raise OSError("broken")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]  # the next write, even a failed one, has put it back
    save("newest")
    assert (place / "a").read_text() == "newest"
    assert (place / "mine" / "b").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


# ---- SIGTERM and Ctrl-C ------------------------------------------------------------------------------------------


def signalled(monkeypatch, numbers, *, when: int | str):
    """Let a run get signals in the middle of an update, or of an evaluation."""
    step, evaluate = Run.train_step, Run.evaluate

    def train_step(self):
        if self.step + 1 == when:
            for number in numbers:
                os.kill(os.getpid(), number)
        return step(self)

    def evaluation(self, which):
        if which == when:
            for number in numbers:
                os.kill(os.getpid(), number)
        return evaluate(self, which)

    monkeypatch.setattr(Run, "train_step", train_step)
    monkeypatch.setattr(Run, "evaluate", evaluation)


def exit_code(words) -> int:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    return exit_info.value.code


@pytest.mark.parametrize(
    ("number", "when", "saved"),
    [
        (signal.SIGTERM, 3, [2, 3]),
        slow(signal.SIGINT, 4, [2, 4]),
        slow(signal.SIGHUP, 3, [2, 3]),
        slow(signal.SIGTERM, "before", []),
        (signal.SIGINT, "after", [2, 4, 6]),
    ],
)
def test_a_run_saves_and_ends_when_asked(config, never, tmp_path, monkeypatch, capfd, number, when, saved):
    shutil.copy(never / "config.yaml", tmp_path)
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        signalled(patch, [number], when=when)
        assert exit_code(command) == 4
    assert "hrpo: interrupted; nothing is lost, --resume goes on" in (said := capfd.readouterr().err)
    assert ("finished and saved first" in said) == isinstance(when, int)
    assert sorted(checkpoints(config.run_folder)) == saved
    main([*command, "--resume"])
    assert outcome(config.run_folder) == outcome(never)


def test_asked_twice_it_quits_at_once(config, tmp_path, monkeypatch):
    Run(config)
    signalled(monkeypatch, [signal.SIGINT, signal.SIGINT], when=3)
    assert exit_code([*words(config), "--resume"]) == 130
    assert sorted(checkpoints(config.run_folder)) == [2]


def test_a_terminal_may_say_twice_that_it_closes(config, monkeypatch):
    Run(config)
    signalled(monkeypatch, [signal.SIGHUP, signal.SIGHUP], when=3)
    assert exit_code([*words(config), "--resume"]) == 4
    assert sorted(checkpoints(config.run_folder)) == [2, 3]


def test_asked_before_there_is_a_folder(config, tmp_path, monkeypatch, capfd):
    """Nothing can be resumed then, so nothing of the kind is promised."""
    begin = Run.__init__

    def asked(self, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        begin(self, *args, **options)

    monkeypatch.setattr(Run, "__init__", asked)
    command = ["train", "--name", "run", "--output_dir", str(tmp_path), "--rollout.max_new_tokens", "16"]
    assert exit_code(command) == 4
    assert capfd.readouterr().err == "hrpo: interrupted; nothing is lost, the same command begins the run\n"
    assert not config.run_folder.exists()


@pytest.mark.slow
def test_a_comparison_ends_and_goes_on(config, tmp_path, monkeypatch):
    Run(dataclasses.replace(config, name="begun"))
    file = tmp_path / "begun" / "config.yaml"
    command = ["compare", "--config", str(file), "--name", "{arm}-{seed}", "--modes", "[hybrid,discrete]"]
    command += ["--seeds", "[0]", "--max_steps", "3"]
    with monkeypatch.context() as patch:
        signalled(patch, [signal.SIGTERM], when=1)
        assert exit_code(command) == 4
    assert sorted(checkpoints(tmp_path / "hybrid-0")) == [1]
    main(command)
    assert (tmp_path / "comparison.json").is_file()


def test_an_ignored_signal_stays_ignored(config, monkeypatch):
    Run(config)
    signalled(monkeypatch, [signal.SIGINT], when=1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main([*words(config), "--resume", "--eval.problems", "0"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert max(checkpoints(config.run_folder)) == 6


def test_a_thread_can_train(config):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(dataclasses.replace(config, max_steps=1))))
    thread.start()
    thread.join()
    assert results[0].keys() == {"before", "after"}


# ---- what ends a run between checkpoints -------------------------------------------------------------------------

ENDS = {
    "an error": RuntimeError("odd"),
    "what a user gave": InputError("", "odd"),
    "no memory": MemoryError(),
    "sys.exit": SystemExit(0),
    "Ctrl-C in a notebook": KeyboardInterrupt(),
}


@pytest.mark.parametrize(
    "how", ["an error", slow("what a user gave"), slow("no memory"), slow("sys.exit"), "Ctrl-C in a notebook"]
)
def test_what_ends_a_run_saves_first(config, never, tmp_path, monkeypatch, how):
    """The updates that no checkpoint holds; the error says where they are."""

    def ending(self, step):
        if step == 3:
            raise ENDS[how]
        return batch(self, step)

    batch = Trainer.batch
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "batch", ending)
        with pytest.raises(type(ENDS[how])) as error:
            train(config)
    saved = config.run_folder / "checkpoint-3"
    assert error.value.__notes__ == [f"saved first, in {saved}: --resume goes on from there"]
    assert sorted(checkpoints(config.run_folder)) == [2, 3]
    assert verify(saved) is None
    train(config, resume=True)
    assert outcome(config.run_folder) == outcome(never)


def test_supervised_updates_are_saved_too(config, monkeypatch):
    def ending(self, step):
        if step == 1:
            raise RuntimeError("odd")
        return batch(self, step)

    batch = Trainer.batch
    monkeypatch.setattr(Trainer, "batch", ending)
    with pytest.raises(RuntimeError, match="odd"):
        train(dataclasses.replace(config, algorithm="sft", eval=EvalConfig(problems=0)))
    assert sorted(checkpoints(config.run_folder)) == [1]


@pytest.mark.parametrize("where", ["in the optimizer", "before the log"])
def test_no_half_update_is_saved(config, monkeypatch, where):
    """Once some weights have changed and others not, or an update is not in the log, the last checkpoint counts."""

    def ending(self, *args):
        if len(checkpoints(config.run_folder)) == 1:  # in the third update
            raise RuntimeError("odd")
        return step(self, *args) if where == "in the optimizer" else []

    step = torch.optim.AdamW.step
    if where == "in the optimizer":
        monkeypatch.setattr(torch.optim.AdamW, "step", ending)
    else:
        monkeypatch.setattr("hrpo.training.run.samples_of", ending)
    with pytest.raises(RuntimeError, match="odd") as error:
        train(dataclasses.replace(config, eval=EvalConfig(problems=0)))
    assert not hasattr(error.value, "__notes__")
    assert sorted(checkpoints(config.run_folder)) == [2]


@pytest.fixture
def nobody_reads():
    """A pipe whose reader has ended."""
    reads, writes = os.pipe()
    os.close(reads)
    return os.fdopen(writes, "w")


@pytest.mark.parametrize("output", ["nobody reads", "full"])
def test_an_output_that_takes_nothing(config, nobody_reads, tmp_path, monkeypatch, capfd, output):
    """As in `hrpo train | head`, or with output to a full disk, which is not that of the run folder."""
    with monkeypatch.context() as patch, Path("/dev/full").open("w") as full:
        patch.setattr(sys, "stdout", nobody_reads if output == "nobody reads" else full)
        command = ["train", "--name", "run", "--output_dir", str(tmp_path), "--rollout.max_new_tokens", "16"]
        command += [
            "--eval.problems",
            "0",
            "--check.prompts",
            "0",
            "--rollout.prompts_per_step",
            "2",
            "--max_steps",
            "3",
        ]
        code = exit_code(command)
        sys.stdout.close()
    console.begin_capture()
    console.end_capture()  # forgets what it could not print
    said = capfd.readouterr().err
    assert said.endswith(f"saved first, in {config.run_folder / 'checkpoint-1'}: --resume goes on from there\n")
    assert said.count("\n") == 1
    if output == "nobody reads":
        assert code == 128 + signal.SIGPIPE
        assert said.startswith("hrpo: nobody reads on; saved first")
    else:
        assert code == 3
        assert said.startswith("hrpo: stopped: nothing can be written to standard output (No space left on device)")
    assert sorted(checkpoints(config.run_folder)) == [1]


# ---- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True)
    if not done or done.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Leave so many bytes free."""
    free = shutil.disk_usage(folder).free
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.write(b"0" * (free - leave))
    return ballast


@pytest.mark.parametrize("what", ["checkpoint", slow("metrics")])
def test_a_full_disk(config, never, small_disk, capfd, monkeypatch, what):
    there = dataclasses.replace(config, output_dir=str(small_disk))
    step = Run.train_step

    def filled(self):
        if self.step == 2 and what == "checkpoint":  # room for logs, not for another checkpoint
            fill(self.folder.parent, 2**20)
        metrics = step(self)
        if self.step == 3 and what == "metrics":  # room for a part of the line
            fill(self.folder.parent, 0)
            metrics |= {"padding": "x" * 2 * os.sysconf("SC_PAGESIZE")}
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", filled)
        shutil.copy(never / "config.yaml", small_disk / "settings.yaml")
        command = ["train", "--config", str(small_disk / "settings.yaml"), "--output_dir", str(small_disk)]
        assert exit_code(command) == 3
    assert "Traceback" not in (said := capfd.readouterr().err)
    assert said.count("\n") == 1
    assert f"hrpo: stopped: the disk of {there.run_folder} is full" in said
    assert sorted(checkpoints(there.run_folder)) == [2]
    assert verify(there.run_folder / "checkpoint-2") is None
    assert not list(there.run_folder.glob("*.tmp"))
    if what == "metrics":
        assert not (there.run_folder / "metrics.jsonl").read_text().endswith("\n")
    with pytest.raises(StoppedError, match="full"):  # still full
        train(there, resume=True)
    assert verify(there.run_folder / "checkpoint-2") is None
    (small_disk / "ballast").unlink()
    train(dataclasses.replace(there, keep=CheckpointConfig(save_total_limit=1)), resume=True)
    assert outcome(there.run_folder) == outcome(never)


# ---- which checkpoints stay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["arithmetic", "list"])
def test_held_out_problems_are_not_trained_on(tmp_path, task):
    settings = TaskConfig(num_fewshot=2)
    if task == "list":
        rows = [{"question": f"What is {i} + {i % 7}?", "answer": f"#### {i + i % 7}"} for i in range(60)]
        lines = [json.dumps(row) + "\n" for row in [*rows, *rows]]  # each twice
        (tmp_path / "train.jsonl").write_text("".join(lines))
        (tmp_path / "test.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')
        settings = TaskConfig("gsm8k", path=str(tmp_path), num_fewshot=2)
    else:
        settings = TaskConfig(num_fewshot=2, min_terms=2, max_terms=2)  # so few different ones that they come again
    whole = load_task(settings, seed=5)
    held_out, rest = hold_out(whole, 20, seed=5)
    kept = {dedup_key(example) for example in held_out}
    assert len(held_out) == len(kept) == 20
    places = range(len(rest.train)) if task == "list" else range(5000)
    assert any(dedup_key(whole.train[place]) in kept for place in places)
    assert not any(dedup_key(rest.train[place]) in kept for place in places)
    assert not kept & {dedup_key(example) for example in whole.test[:1000]}
    assert not kept & {"".join(message["content"].split()).casefold() for message in whole.preamble}
    assert hold_out(whole, 20, seed=5)[0] == held_out != hold_out(whole, 20, seed=6)[0]
    assert rest.train[1:3] == [rest.train[1], rest.train[2]]
    if task == "list":
        assert len(rest.train) == len(whole.train) - 2 * 20
        with pytest.raises(InputError, match=r"keep.problems: 58 held out of"):
            hold_out(whole, 58, seed=5)


def scored(run: Path, scores: dict[int, float]) -> None:
    run.mkdir()
    for step in scores:
        (run / f"checkpoint-{step}").mkdir()
    rows = [json.dumps({"step": step, "accuracy": score}) + "\n" for step, score in scores.items()]
    (run / "validation.jsonl").write_text("".join(rows))


@pytest.mark.parametrize(
    ("last", "best", "stay"),
    [(0, 0, [2, 4, 6, 8, 10]), (2, 0, [8, 10]), (1, 1, [4, 10]), (1, 2, [4, 6, 10]), (2, 3, [2, 4, 6, 8, 10])],
)
def test_which_checkpoints_stay(tmp_path, last, best, stay):
    scored(tmp_path / "run", {2: 0.3, 4: 0.5, 6: 0.5, 8: 0.1, 10: 0.2})
    prune(tmp_path / "run", CheckpointConfig(last, best, problems=9))
    assert sorted(checkpoints(tmp_path / "run")) == stay
    assert (tmp_path / "run" / "best").readlink() == Path("checkpoint-4" if 4 in stay else "checkpoint-10")


def test_a_run_keeps_the_last_and_the_best(config, tmp_path, monkeypatch, capfd):
    config = dataclasses.replace(config, keep=CheckpointConfig(save_total_limit=1, best=1, problems=4))
    found = []

    def watch(path):
        found.append(sorted(checkpoints(path.parent)))
        remove(path)

    remove = files.remove_folder
    monkeypatch.setattr(files, "remove_folder", watch)
    train(config)
    assert all(6 in there or len(there) > 1 for there in found)  # the new one is there before an old one goes
    run = config.run_folder
    rows = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {row["problems"] for row in rows} == {4}
    best = max(rows, key=lambda row: (row["accuracy"], -row["step"]))["step"]
    assert sorted(checkpoints(run)) == sorted({best, 6})
    assert (run / "best").resolve() == (run / f"checkpoint-{best}").resolve()
    assert f"`checkpoint-{best}` does best" in (run / "report.md").read_text()
    assert HybridCausalLM.from_pretrained(run / "best").settings.step == best
    assert "of 4 held-out training problems" in capfd.readouterr().out


def test_sealing_again_changes_nothing(run):
    before = (run / "checkpoint-4" / SUMS_FILE).read_text()
    write_checksums(run / "checkpoint-4")
    assert (run / "checkpoint-4" / SUMS_FILE).read_text() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_handle_stays_open(config):
    def handles():
        return len(list(Path("/proc/self/fd").iterdir()))

    begun = Run(config)
    begun.save()
    before = handles()
    for _ in range(3):
        begun.save()
        verify(config.run_folder / "checkpoint-0")
    assert handles() == before


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(config, tmp_path, capfd):
    """The second one is refused and changes nothing; the lock ends with the first."""
    begun = Run(config)
    begun.log(begun.train_step())
    begun.save()
    folder = begun.folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = [
        sys.executable,
        "-c",
        "import sys; from hrpo.training.train import train; from hrpo.config.schema import *; ",
    ]
    again[-1] += f"train({config!r}, resume=True)"
    refused = subprocess.run(again, capture_output=True, text=True)
    assert f"InputError: name: another process trains {folder}; wait for it" in refused.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    Run(config, resume=True)  # the same process may look at it
    del begun
    gc.collect()
    assert subprocess.run(again, capture_output=True).returncode == 0
