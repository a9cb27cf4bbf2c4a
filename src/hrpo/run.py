"""A run from its first look at the rewards to its report."""

import json
from typing import Any

from hrpo import files
from hrpo.advice import Signs, advice
from hrpo.check import as_dict, check, show
from hrpo.config import TrainConfig
from hrpo.errors import StoppedError
from hrpo.guards import active, onsets, skipped_in_a_row
from hrpo.limits import show_dropped
from hrpo.processes import leading
from hrpo.progress import bar, console, metrics_note
from hrpo.report import read_lines, write_report
from hrpo.sick import FOLDER as SKIPPED
from hrpo.trainer import Metrics, Trainer


def train(config: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Check, evaluate, train, evaluate again, and leave everything in the run folder.

    The folder holds config.yaml, check.json, metrics.jsonl, samples.jsonl, checkpoint-N, evaluation.json, the answers
    to the test problems, report.md and curves.png.

    Returns:
        The evaluation: {"before": {"greedy": {...}, "sampled": {...}}, "after": ...}. Nothing in a process that does
        not lead.

    Raises:
        InputError: a setting cannot be used, or the folder is another run's.
        StoppedError: no group has had a signal for `check.patience` updates; a checkpoint is saved.

    """
    trainer = Trainer(config, resume=resume)
    with leading(trainer) as leads:
        return _train(trainer) if leads else {}


def _train(trainer: Trainer) -> dict[str, Any]:
    config = trainer.config
    show_dropped(trainer.task)
    if config.objective == "hrpo" and config.check.prompts and trainer.step == 0:
        checked = check(trainer)
        files.write_text(trainer.folder / "check.json", json.dumps(as_dict(checked), indent=2) + "\n")
        show(checked)
    evaluation = trainer.evaluation()
    if "before" not in evaluation:
        evaluation["before"] = trainer.evaluate("before")
    updates = read_lines(trainer.folder / "metrics.jsonl")
    with bar("update", config.updates, trainer.step) as progress:
        while trainer.step < config.updates:
            metrics = trainer.train_step()
            updates.append(metrics)
            metrics["warnings"] = len(active(updates))
            trainer.log(metrics)
            progress.advance(note=metrics_note(metrics))
            for line in onsets(updates):
                console.print(f"warning: {line}")
            reason = _reason(updates, config)
            if reason or trainer.step % config.save_every == 0 or trainer.step == config.updates:
                trainer.save()
            if reason:
                raise StoppedError(reason)
    if "after" not in evaluation:
        evaluation["after"] = trainer.evaluate("after")
    write_report(trainer.folder)
    return evaluation


def without_signal(updates: list[Metrics], patience: int) -> bool:
    """Whether none of the last `patience` updates had a group with a signal; never where patience is 0."""
    last = updates[-patience:] if patience else []
    return len(last) == patience > 0 and not any(update.get("signal", 1) for update in last)


def _reason(updates: list[Metrics], config: TrainConfig) -> str:
    """Return why to stop; nothing where training is to go on."""
    if skipped_in_a_row(updates) >= config.check.max_skipped:
        return (
            f"the last {config.check.max_skipped} updates were skipped, since something in them was not finite "
            f"(check.max_skipped); {SKIPPED}/ in the run folder has their batches. Lower optimizer.lr, "
            "optimizer.gate_lr and optimizer.lambda_lr, or set model.dtype to float32"
        )
    if not without_signal(updates, config.check.patience):
        return ""
    tips = advice(Signs.of_updates(updates[-config.check.patience :]), config)
    head = f"no group had a signal in the last {config.check.patience} updates, so nothing was learnt (check.patience)"
    return "\n".join([head, *(f"- {tip}" for tip in tips)])
