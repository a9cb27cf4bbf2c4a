"""Metrics to TensorBoard, Weights & Biases or Trackio, through Accelerate; one that fails never stops a training."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hrpo.common.console import console
from hrpo.config.schema import Tracker

Log = Callable[[Mapping[str, float]], None]
PROJECT = "hrpo"


def is_installed(tracker: str) -> bool:
    """Whether the package of a tracker is there; of none, nothing is needed."""
    return tracker == "none" or importlib.util.find_spec(tracker) is not None


@contextmanager
def tracking(name: Tracker, folder: Path, settings: Mapping[str, Any], step: int) -> Iterator[Log]:
    """Yield what takes an update's metrics.

    A failure, at the start, at a call or at the end, is one warning, and the tracker is off from there on.

    Args:
        name: of the tracker.
        folder: of the run. TensorBoard's files lie in it; the others call the run by its name, in the project hrpo.
        settings: all of the run, as the tracker shows them.
        step: updates that are done. TensorBoard forgets later ones, which come again.

    """
    if name == "none":
        yield lambda metrics: None
        return
    tracker = _Tracker(name, folder, settings, step)
    try:
        yield tracker.log
    finally:
        tracker.attempt(lambda: tracker.accelerator.end_training())


class _Tracker:
    def __init__(self, name: Tracker, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self.name, self.works = name, True
        self.attempt(lambda: self.start(folder, settings, step))

    def start(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        of_each = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"name": folder.name},
            "trackio": {"name": folder.name},
        }
        self.accelerator = Accelerator(log_with=self.name, project_dir=folder)
        # TensorBoard takes the project's name for a folder in the run's.
        project = self.name if self.name == "tensorboard" else PROJECT
        self.accelerator.init_trackers(project, None if step else dict(_flat(settings)), of_each)

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
