"""A run from its first look at the rewards to its report."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError

from hrpo.common import distributed, files
from hrpo.common.console import bar, console, metrics_note
from hrpo.common.errors import StoppedError
from hrpo.common.metrics import NO_SIGNAL, read_metrics
from hrpo.common.signals import Stop
from hrpo.config.schema import TrainConfig
from hrpo.data import Metrics
from hrpo.reports.run_report import write_report
from hrpo.storage.retention import prune, scores
from hrpo.training.advice import Signs, advice, told_out_of_memory
from hrpo.training.length_filter import show_dropped
from hrpo.training.monitor import active, onsets, skipped_in_a_row
from hrpo.training.nonfinite import FOLDER as SKIPPED
from hrpo.training.preflight import as_dict, check, show
from hrpo.training.run import Run
from hrpo.training.trackers import tracking


def train(config: TrainConfig, *, resume: bool = False, stop: Stop | None = None) -> dict[str, Any]:
    """Check, evaluate, train, evaluate again, and leave everything in the run folder.

    The folder holds config.yaml, provenance.json, check.json, metrics.jsonl, samples.jsonl, checkpoint-N,
    evaluation.json, the answers to the test problems, report.md and curves.png; with held-out training problems
    validation.jsonl and best, too.

    Args:
        config: every setting.
        resume: go on from the newest whole checkpoint.
        stop: tells when to save and end, see `hrpo.common.signals.listening`.

    Returns:
        The evaluation: {"before": {"greedy": {...}, "sampled": {...}}, "after": ...}.

    Raises:
        InputError: a setting cannot be used, or the folder is another run's.
        StoppedError: no group has had a signal for `check.patience` updates, and a checkpoint is saved; the disk is
            full; or the run folder was renamed or deleted.
        OutputError: standard output takes nothing any more.
        Interrupted: `stop` has been asked for; everything is saved.

    Whatever ends it between two checkpoints, an error of a reward's or of hrpo's own, the updates are saved first and
    the exception has a note that says where.

    """
    try:
        run = Run(config, resume=resume)
        with told_out_of_memory(config.model, config.gradient_checkpointing):
            return _whole(run, stop or Stop())
    except (OSError, SafetensorError) as error:
        if not files.is_full(error):
            raise
        raise StoppedError(
            f"the disk of {config.run_folder} is full ({error}); every checkpoint in it is whole: make room, for "
            "example with keep.save_total_limit, then --resume"
        ) from error
    except RuntimeError as error:
        if not distributed.has_lost_another(error):
            raise
        raise StoppedError(
            f"process {distributed.rank()} of {distributed.count()} has lost another, which ended or was silent for "
            f"too long ({str(error).splitlines()[0]}); --resume goes on from the newest checkpoint"
        ) from error


def _whole(run: Run, stop: Stop) -> dict[str, Any]:
    """Go through all stages, and release the run folder; where it has another name by now, say so."""
    try:
        return _stages(run, stop)
    except (OSError, SafetensorError) as error:
        if not run.renamed:  # or deleted, which it says itself
            raise
        raise StoppedError(run.renamed) from error
    finally:
        if run.lock:
            run.lock.release()


def _stages(run: Run, stop: Stop) -> dict[str, Any]:
    """Look at the rewards, evaluate, train, evaluate again, and write the report."""
    show_dropped(run.trainer.task)
    if run.trainer.algorithm.samples and run.config.check.prompts and run.step == 0:
        checked = check(run)
        text = json.dumps(as_dict(checked), indent=2) + "\n"
        distributed.from_main(lambda: files.write_text(run.folder / "check.json", text))
        distributed.from_main(lambda: show(checked))
    if not distributed.from_main(lambda: run.evaluated("before")):
        run.evaluate("before")
    with saving(run, stop):
        _update(run, stop)
    if not distributed.from_main(lambda: run.evaluated("after")):
        run.evaluate("after")
    return distributed.from_main(lambda: _report(run))


def _report(run: Run) -> dict[str, Any]:
    write_report(run.folder)
    if run.renamed:
        raise StoppedError(run.renamed)
    return run.evaluation()


@contextmanager
def saving(run: Run, stop: Stop) -> Iterator[None]:
    """Save before whatever ends the block, and note that on it: an error, an output that nobody reads, Ctrl-C.

    Only a second signal, which asks to end at once, saves nothing.
    """
    try:
        yield
    except BaseException as error:
        at_once = isinstance(error, KeyboardInterrupt) and stop.asked
        if not at_once and (path := run.save_unsaved(error)):
            error.add_note(f"saved first, in {path}: --resume goes on from there")
        stop.unsaved = False
        raise


def _update(run: Run, stop: Stop) -> None:
    """Do the updates that are left, and say, log, save and validate on the way."""
    config = run.config
    updates = distributed.from_main(lambda: read_metrics(run.folder))
    main = distributed.is_main_process()
    with (
        tracking(config.report_to, config.run_folder, dataclasses.asdict(config), run.step)
        if main
        else contextlib.nullcontext(lambda metrics: None) as track,
        bar("update", config.max_steps, run.step) as progress,
    ):
        while True:
            if _due(
                run.step, config.save_every, config.max_steps
            ):  # saved already, so that a kill loses nothing here: a resumed run is back
                _validate(run)
            if run.step >= config.max_steps:
                break
            stop.unsaved = True
            metrics = run.train_step()
            updates.append(metrics)
            metrics["warnings"] = len(active(updates))
            run.log(metrics)

            def tell(metrics: Metrics = metrics) -> tuple[str, bool]:
                track(metrics)
                progress.advance(note=metrics_note(metrics))
                for line in onsets(updates):
                    console.print(f"warning: {line}")
                return run.renamed or _reason(updates, run), stop.asked

            reason, asked = distributed.from_main(tell)
            if reason or asked or _due(run.step, config.save_every, config.max_steps):
                run.save()
                distributed.from_main(stop.saved)
            if reason:
                raise distributed.everywhere(StoppedError(reason))


def _due(step: int, every: int, last: int) -> bool:
    """Whether a checkpoint is due after so many updates."""
    return step > 0 and (step % every == 0 or step == last)


def _validate(run: Run) -> None:
    """Log how good the checkpoint is, then delete those that need not stay."""
    run.validate()

    def tell() -> None:
        if run.held_out:
            share, count = scores(run.folder)[run.step], len(run.held_out)
            console.print(f"update {run.step}: {share:.1%} of {count} held-out training problems")
        prune(run.folder, run.config.keep)

    distributed.from_main(tell)


def without_signal(updates: list[Metrics], patience: int) -> bool:
    """Whether none of the last `patience` updates had a group with a signal; never where patience is 0."""
    last = updates[-patience:] if patience else []
    return len(last) == patience > 0 and all(update.get(NO_SIGNAL) == 1 for update in last)


def _reason(updates: list[Metrics], run: Run) -> str:
    """Return why to stop; nothing where training is to go on."""
    config = run.config
    if skipped_in_a_row(updates) >= config.check.max_skipped:
        return (
            f"the last {config.check.max_skipped} updates were skipped, since something in them was not finite "
            f"(check.max_skipped); {SKIPPED}/ in the run folder has their batches. Lower optimizer.lr, "
            "optimizer.gate_lr and optimizer.lambda_lr, or set model.dtype to float32"
        )
    if not without_signal(updates, config.check.patience):
        return ""
    signs = Signs.of_updates(updates[-config.check.patience :])
    tips = advice(signs, config.rollout, config.task, run.model.end_texts)
    head = f"no group had a signal in the last {config.check.patience} updates, so nothing was learnt (check.patience)"
    return "\n".join([head, *(f"- {tip}" for tip in tips)])
