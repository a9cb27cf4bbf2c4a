"""Metrics to TensorBoard, Weights & Biases or Trackio, through Accelerate; one that fails never stops a training."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from hrpo.common.console import console
from hrpo.config.schema import TrainConfig

Log = Callable[[Mapping[str, float]], None]
PROJECT = "hrpo"


def is_installed(tracker: str) -> bool:
    """Whether the package of a tracker is there; of none, nothing is needed."""
    return tracker == "none" or importlib.util.find_spec(tracker) is not None


@contextmanager
def tracking(config: TrainConfig, step: int) -> Iterator[Log]:
    """Yield what takes an update's metrics.

    A failure, at the start, at a call or at the end, is one warning, and the tracker is off from there on.

    Args:
        config: of the run. TensorBoard's files lie in its folder; the others call it by its name in the project hrpo.
        step: updates that are done. TensorBoard forgets later ones, which come again.

    """
    tracker = _Tracker(config, step) if config.report_to != "none" else None
    if tracker is None:
        yield lambda metrics: None
        return
    try:
        yield tracker.log
    finally:
        tracker.attempt(lambda: tracker.accelerator.end_training())


class _Tracker:
    def __init__(self, config: TrainConfig, step: int) -> None:
        self.name, self.works = config.report_to, True
        self.attempt(lambda: self.start(config, step))

    def start(self, config: TrainConfig, step: int) -> None:
        folder = config.run_folder
        of_each = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"name": folder.name},
            "trackio": {"name": folder.name},
        }
        self.accelerator = Accelerator(log_with=self.name, project_dir=folder)
        # TensorBoard takes the project's name for a folder in the run's.
        project = self.name if self.name == "tensorboard" else PROJECT
        settings = None if step else dict(_flat(dataclasses.asdict(config)))
        self.accelerator.init_trackers(project, settings, of_each)

    def log(self, metrics: Mapping[str, float]) -> None:
        self.attempt(lambda: self.accelerator.log(dict(metrics), step=int(metrics["step"])))

    def attempt(self, call: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            call()
        except Exception as error:  # whatever it is: of another's service, over the network
            self.works = False
            reason = " ".join(str(error).split()) or type(error).__name__
            console.print(f"warning: {self.name} has failed and is off, training goes on: {reason}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
