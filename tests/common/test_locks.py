"""Two processes on one folder: the second is refused, and nothing is lost; a run folder that is moved or deleted."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from hrpo import HybridCausalLM
from hrpo.common import files, locks
from hrpo.common.errors import InputError, StoppedError
from hrpo.config.schema import CheckConfig, EvalConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.evaluation.run import evaluate_checkpoints
from hrpo.hub.export import export
from hrpo.storage.run_dir import checkpoints, lock_run, verify
from hrpo.training import run
from hrpo.training.run import Run
from hrpo.training.train import train


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="run",
        output_dir=str(tmp_path / "runs"),
        max_steps=4,
        save_every=4,
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=2, group_size=2, max_new_tokens=4),
        check=CheckConfig(prompts=0, patience=0),
        eval=EvalConfig(problems=0),
    )


@pytest.fixture
def elsewhere():
    """Lock a folder or a file as another process does."""
    handles = []

    def lock(place):
        handles.append(os.open(place, os.O_RDONLY))
        fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)

    yield lock
    for handle in handles:
        os.close(handle)


@pytest.fixture
def saved(tmp_path):
    HybridCausalLM.from_pretrained("tiny").save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_a_run_is_locked_before_its_checkpoints_are_looked_at(config, elsewhere, monkeypatch):
    """Else one that is resumed late takes an old checkpoint for the newest, and later ones for damaged."""
    begun = Run(config)
    begun.save()
    begun.lock.release()
    elsewhere(config.run_folder)
    monkeypatch.setattr("hrpo.training.run.latest_valid_checkpoint", lambda *args: pytest.fail("looked at"))
    with pytest.raises(InputError, match="name: another process trains"):
        Run(config, resume=True)


def test_a_run_that_another_process_began_meanwhile_is_left_alone(config, monkeypatch):
    def late(folder):
        lock = lock_run(folder)
        (folder / "config.yaml").write_text("of the other\n")
        (folder / "checkpoint-4").mkdir()
        return lock

    monkeypatch.setattr("hrpo.training.run.lock_run", late)
    with pytest.raises(InputError, match="is a run already"):
        Run(config)
    assert (config.run_folder / "config.yaml").read_text() == "of the other\n"
    assert [path.name for path in config.run_folder.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_folder_begun_anew_is_left_to_the_new_run(config):
    old = Run(config)
    shutil.rmtree(old.folder)
    new = Run(config)
    with pytest.raises(StoppedError, match="was deleted or renamed"):
        old.train_step()
    with pytest.raises(StoppedError, match="was deleted or renamed"):
        old.save()
    new.log(new.train_step())
    assert len((config.run_folder / "samples.jsonl").read_text().splitlines()) == 2
    assert checkpoints(config.run_folder) == {}


def test_a_folder_deleted_while_it_trains(config, monkeypatch):
    step = Run.train_step

    def deleted(self):
        shutil.rmtree(config.run_folder)
        return step(self)

    monkeypatch.setattr(Run, "train_step", deleted)
    with pytest.raises(StoppedError, match="was deleted or renamed"):
        train(config)
    assert not config.run_folder.exists()


@pytest.mark.parametrize("when", ["in an update", "in a write", "at the end"])
def test_a_folder_renamed_while_it_trains(config, tmp_path, monkeypatch, when):
    """The run goes on where the folder is, saves, and says so; under its own name it goes on from there."""
    place, moved = config.run_folder, tmp_path / "moved"
    places = {
        "in an update": (Run, "train_step"),
        "in a write": (run, "write_checksums"),
        "at the end": (Run, "evaluate"),
    }
    method = getattr(*places[when])

    def renamed(*args):
        if place.exists() and args[1:] != ("before",):
            place.rename(moved)
        return method(*args)

    with monkeypatch.context() as patch:
        patch.setattr(*places[when], renamed)
        with pytest.raises(StoppedError, match=f"was renamed to {moved}, .*--resume"):
            train(config)
    assert not place.exists()
    saved = {"in an update": [1], "in a write": [4], "at the end": [4]}[when]
    assert list(checkpoints(moved)) == saved
    assert all(verify(path) is None for path in checkpoints(moved).values())
    moved.rename(place)
    assert Run(config, resume=True).step == max([0, *saved])


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_a_file_system_without_locks(config, monkeypatch, capsys, code):
    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    locks._warn_once.cache_clear()
    monkeypatch.setattr(fcntl, "flock", flock)
    begun = Run(config)
    begun.log(begun.train_step())
    begun.save()
    assert capsys.readouterr().err.count(f"hrpo: warning: no locks here ({os.strerror(code)})") == 1
    assert Run(config, resume=True).step == 1


def test_two_writers_of_a_folder_or_a_file(tmp_path, elsewhere):
    (tmp_path / "folder.tmp").mkdir()
    (tmp_path / "folder.tmp" / "half").write_text("of the other")
    (tmp_path / "file.tmp").write_text("of the other")
    for name, write in (("folder", files.new_folder), ("file", files.new_file)):
        elsewhere(tmp_path / f"{name}.tmp")
        with pytest.raises(InputError, match=f"{name}: another process is writing it"), write(tmp_path / name):
            pytest.fail("written")
    assert (tmp_path / "folder.tmp" / "half").read_text() == (tmp_path / "file.tmp").read_text() == "of the other"


def test_the_draft_of_a_killed_writer_is_free(tmp_path):
    (tmp_path / "folder.tmp").mkdir()
    (tmp_path / "folder.tmp" / "half").write_text("")
    (tmp_path / "file.tmp").write_text("longer than what follows")
    with files.new_folder(tmp_path / "folder") as draft:
        assert list(draft.iterdir()) == []
    files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_two_exports(saved, tmp_path, elsewhere, monkeypatch):
    out, load = tmp_path / "out", HybridCausalLM.from_pretrained
    monkeypatch.setattr(HybridCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("the model is loaded"))
    Path(f"{out}.tmp").mkdir()
    elsewhere(f"{out}.tmp")
    with pytest.raises(InputError, match="out: another process is writing it"):
        export(saved, out)
    monkeypatch.setattr(HybridCausalLM, "from_pretrained", load)
    export(saved, tmp_path / "second")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "second").iterdir()}
    with pytest.raises(InputError, match=r"--out: .*second is there already"):
        export(saved, tmp_path / "second")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "second").iterdir()} == done


def test_two_evaluations(saved, tmp_path, elsewhere):
    out = tmp_path / "evaluation"
    options = {"tasks": ["arithmetic"], "problems": 2, "samples": 0, "max_new_tokens": 2, "out": str(out)}
    evaluate_checkpoints([saved], **options)
    shutil.rmtree(out / "answers")
    elsewhere(out)
    with pytest.raises(InputError, match="--out: another process evaluates in"):
        evaluate_checkpoints([saved], **options)
    assert not (out / "answers").exists()


def test_a_comparison_of_settings_is_made_once_the_folder_is_locked(saved, tmp_path, monkeypatch):
    """Another evaluation, with other settings, has taken the folder in the meantime."""
    out = tmp_path / "evaluation"
    options = {"tasks": ["arithmetic"], "problems": 2, "samples": 0, "max_new_tokens": 2}
    evaluate_checkpoints([saved], **options, out=str(tmp_path / "other"))

    def meanwhile(*args):
        shutil.copytree(tmp_path / "other", out)

    monkeypatch.setattr("hrpo.evaluation.run.check_test_prompts", meanwhile)
    with pytest.raises(InputError, match=r"--out: .* holds an evaluation with other settings"):
        evaluate_checkpoints([saved], **{**options, "problems": 3}, out=str(out))
