"""Which checkpoints stay: the newest, and those that do best on training problems held out for that."""

from pathlib import Path

from hrpo.common import files
from hrpo.common.files import read_lines
from hrpo.config.schema import CheckpointConfig
from hrpo.storage.run_dir import VALIDATION_FILE, checkpoints

BEST = "best"  # a link to the best checkpoint


def scores(folder: Path) -> dict[int, float]:
    """Return the accuracy on the held-out training problems of each update that has been validated."""
    return {row["step"]: row["accuracy"] for row in read_lines(folder / VALIDATION_FILE)}


def ranked(folder: Path) -> list[Path]:
    """Return the checkpoints that have been validated, the best first; of equals the earlier."""
    found, score = checkpoints(folder), scores(folder)
    return [found[step] for step in sorted(found.keys() & score.keys(), key=lambda step: (-score[step], step))]


def prune(folder: Path, keep: CheckpointConfig) -> None:
    """Point the link to the best of the checkpoints that stay, then delete those neither new nor good enough."""
    newest, best = list(checkpoints(folder).values()), ranked(folder)
    stay = {*newest[: keep.save_total_limit or None], *best[: keep.best]}
    if best := [path for path in best if path in stay]:
        files.link(folder / BEST, best[0].name)
    for path in newest:
        if path not in stay:
            files.remove_folder(path)
