"""TensorBoard for real; the others by the same calls to Accelerate, with trackers that fail."""

import dataclasses

import accelerate.accelerator
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrpo.common.errors import InputError
from hrpo.common.files import read_lines
from hrpo.config.schema import EvalConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.training.run import Run
from hrpo.training.trackers import is_installed
from hrpo.training.train import train


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="test",
        output_dir=str(tmp_path),
        max_steps=4,
        save_every=2,
        report_to="tensorboard",
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=2, group_size=2, max_new_tokens=16),
        eval=EvalConfig(problems=0),
    )


def events(folder):
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_tensorboard_has_every_metric(config, tmp_path):
    train(config)
    rows, shown = read_lines(tmp_path / "test" / "metrics.jsonl"), events(tmp_path / "test")
    assert set(shown) >= set(rows[0])
    for name in rows[0]:
        assert shown[name] == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert "latent.mode" in next((tmp_path / "test" / "tensorboard").glob("*/hparams.yml")).read_text()


def test_a_resumed_run_shows_each_update_once(config, tmp_path, monkeypatch):
    step = Run.train_step

    def killed(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Run, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)  # from update 2: the third comes again
    assert [at for at, _ in events(tmp_path / "test")["reward"]] == [1, 2, 3, 4]


class Failing(GeneralTracker):
    name, requires_logging_directory = "wandb", False
    tracker = None

    def __init__(self, run_name, **options):
        super().__init__()
        self.calls.append(("init", run_name, options))
        self.fail("init")

    def fail(self, when):
        if when == self.when:
            raise ConnectionError("no\nnetwork")

    def start(self):
        self.fail("start")

    def store_init_configuration(self, values):
        self.calls.append(("settings", values["latent.mode"]))
        self.fail("settings")

    def log(self, values, step=None, **options):
        self.calls.append(("log", step))
        self.fail("log")

    def finish(self):
        self.fail("finish")


@pytest.mark.parametrize(
    "when",
    [*(pytest.param(when, marks=pytest.mark.slow) for when in ("init", "settings", "finish")), "start", "log", "never"],
)
def test_a_tracker_that_fails_stops_nothing(config, tmp_path, monkeypatch, capsys, when):
    calls = []
    stand_in = type("StandIn", (Failing,), {"when": when, "calls": calls})
    monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, "wandb", stand_in)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr("hrpo.training.validate.is_installed", lambda name: True)
    train(dataclasses.replace(config, report_to="wandb"))
    assert len(read_lines(tmp_path / "test" / "metrics.jsonl")) == 4
    warnings = capsys.readouterr().out.count("warning: wandb has failed and is off, training goes on: no network")
    assert warnings == (when != "never")
    assert calls[0] == ("init", "hrpo", {"name": "test"})
    logged = {"log": 1, "finish": 4, "never": 4}.get(when, 0)
    assert [call for call in calls if call[0] == "log"] == [("log", step) for step in range(1, logged + 1)]


def test_a_missing_package_is_told_before_anything_is_written(config, tmp_path, monkeypatch):
    assert is_installed("none")
    assert is_installed("tensorboard")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"report_to: trackio is not installed; pip install trackio"):
        train(dataclasses.replace(config, report_to="trackio"))
    assert not list(tmp_path.iterdir())
