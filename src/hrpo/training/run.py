"""A run: a trainer, and the folder in which its settings, logs, checkpoints and evaluations live.

All processes run the same code. What only the main process does, such as to look at the folder and to write there, goes
through `distributed.from_main`, so that what fails there fails everywhere.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor

from hrpo.common import distributed, files
from hrpo.common.console import console
from hrpo.common.errors import StoppedError
from hrpo.common.locks import Lock
from hrpo.config.schema import TrainConfig, length_limit
from hrpo.data import Metrics
from hrpo.engine.select import accelerator_for
from hrpo.evaluate import answer_problems, evaluate, summarize
from hrpo.model import HybridCausalLM
from hrpo.models.dates import DATE_FILE, day_of, pin_date
from hrpo.rewards import or_none
from hrpo.storage.retention import scores
from hrpo.storage.run_dir import (
    LOGS,
    OPTIMIZER_FILE,
    STATE_FILE,
    VALIDATION_FILE,
    append,
    check_run_folder,
    clean_run_dir,
    latest_valid_checkpoint,
    lines_until,
    load_optimizer,
    lock_run,
    optimizer_tensors,
    read_step,
    write_checksums,
)
from hrpo.tasks import load_task
from hrpo.tasks.held_out import hold_out
from hrpo.trainer import Update
from hrpo.training import setup
from hrpo.training.evaluations import evaluation_in, initial_model, keep_evaluation
from hrpo.training.length_filter import context_length, fitting
from hrpo.training.metrics import metrics_of, samples_of
from hrpo.training.nonfinite import dump_batch, not_finite, spoilt
from hrpo.training.processes import join_processes
from hrpo.training.provenance import check_provenance, keep_provenance, provenance
from hrpo.training.validate import check_config


class Run:
    """One run.

    Args:
        config: every setting, kept as given in `settings`; in `config` the length limit of completions is a number.
        resume: go on from the newest checkpoint of the run folder.

    Raises:
        InputError: a setting cannot be used; nothing has been written then.

    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        check_config(config)
        device = join_processes()
        self.settings, self.planned = dataclasses.asdict(config), config.run_folder
        self.lock: Lock | None = None  # of the main process
        check_run_folder(self.folder, self.settings, resume)
        if resume and distributed.is_main_process():
            self.lock = lock_run(self.folder)  # before its checkpoints are looked at
        checkpoint = latest_valid_checkpoint(self.folder, "--resume") if resume else None
        if resume and checkpoint is None:
            console.print(f"{self.folder} has no checkpoint yet: it begins anew")
        task = load_task(config.task, config.seed)
        algorithm = setup.algorithm_of(config.algorithm)
        target = None if algorithm.samples else config.sft.target
        setup.check_train(task, config.max_steps, target)
        set_seed(config.seed)  # of the fresh gate and adapters; sampling has keys of its own
        self.saved = 0 if checkpoint is None else read_step(checkpoint)  # updates in the newest checkpoint
        self.latent = setup.latent_of(config.algorithm, config.latent)
        model = setup.load_model(config.model, self.latent, checkpoint, device)
        self.provenance = provenance(model.settings.base_model, model.settings.base_files, task)
        if resume:
            check_provenance(self.folder, self.provenance)
        longest = length_limit(config.rollout.max_new_tokens, context_length(model))
        rollout = dataclasses.replace(config.rollout, max_new_tokens=longest)
        self.config = dataclasses.replace(config, rollout=rollout)
        self._pin_date(model)
        prompts = max(rollout.prompts_per_step, config.check.prompts) if algorithm.samples else 0
        setup.check_fit(model, rollout.top_k, -(-prompts // distributed.count()) * rollout.group_size, longest)
        task = fitting(task, model, rollout, config.eval.problems, target)
        self.held_out, task = hold_out(task, config.keep.problems, config.seed)
        if algorithm.of(config.loss).beta:
            setup.keep_reference(
                model, resumed=checkpoint is not None, trust_remote_code=config.model.trust_remote_code
            )
        self.trainer = setup.make_trainer(self.config, model, task)
        self.trainer.updates = self.saved
        if checkpoint is not None:
            load_optimizer(self.trainer.optimizer, checkpoint)
        self.never_finite = spoilt(model, self.trainer.optimizer)  # as a bias of -inf on ids that are no tokens
        self.evaluation()  # whatever is damaged is told before anything is written
        distributed.barrier()  # until all have read the folder as it was
        if distributed.is_main_process():
            self.lock = self.lock or lock_run(self.folder)
            check_run_folder(self.folder, self.settings, resume)  # another process may have begun it, and ended
            self._begin()
        accelerator = accelerator_for(model.device)
        accelerator.configure_memory(sharded=self.trainer.sharded is not None)
        accelerator.release_memory()  # what loading has left

    def _pin_date(self, model: HybridCausalLM) -> None:
        """Let a chat template that writes today's date keep to the day on which the run began."""
        self.day = distributed.gather(day_of(self.folder))[0]
        self.dated = pin_date(model.tokenizer, self.day)
        if self.dated:
            console.print(f"the chat template writes today's date: in this run and its checkpoints it stays {self.day}")

    def _begin(self) -> None:
        """Write the settings, and cut the logs: what was logged after the checkpoint happens again."""
        logs = {path: lines_until(path, self.step) for path in map(self.folder.joinpath, LOGS) if path.is_file()}
        keep_provenance(self.folder, self.provenance)
        files.write_text(self.folder / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))
        if self.dated:
            files.write_text(self.folder / DATE_FILE, f"{self.day}\n")
        for path, lines in logs.items():
            files.write_text(path, "".join(line + "\n" for line in lines))
        clean_run_dir(self.folder, self.step)

    @property
    def step(self) -> int:
        """The updates that are done."""
        return self.trainer.updates

    @property
    def model(self) -> HybridCausalLM:
        """The model that is trained."""
        return self.trainer.model

    @property
    def folder(self) -> Path:
        """The run folder, which may have been renamed since the run began.

        Raises:
            StoppedError: it is gone; what is in its place, if anything, is another run.

        """
        if self.lock is None:
            return self.planned
        place = self.lock.where()
        if place is None:
            raise StoppedError(
                f"the run folder {self.planned} was deleted or renamed, so the run cannot go on in it; "
                "put it back, then --resume"
            )
        return self.planned if place == self.lock.place else place

    @property
    def renamed(self) -> str:
        """What to say where the run folder has another name by now; empty where it has not."""
        if self.folder == self.planned:
            return ""
        return (
            f"the run folder {self.planned} was renamed to {self.folder}, where all was written since; "
            "give it its name back, then --resume"
        )

    def train_step(self) -> Metrics:
        """Do one update, and return what is to be logged of it.

        Raises:
            StoppedError: training cannot go on; nothing of this update stays.

        """
        update = self.trainer.step()
        self.trainer.stepping = True  # until it is logged, whatever has become of it
        if update.broken or update.stats["skipped"]:
            self._skip_update(update)
        elif names := self.spoilt():
            raise distributed.everywhere(
                StoppedError(
                    f"update {self.step} left numbers that are not finite in {', '.join(names)}: the optimizer's "
                    "state is damaged, or learning rates are too high (optimizer.lr, optimizer.gate_lr, "
                    "optimizer.lambda_lr); nothing of it is saved, and the newest checkpoint is of before"
                )
            )
        self.model.settings = dataclasses.replace(self.model.settings, step=self.step)
        samples = self.trainer.algorithm.samples
        if samples:
            distributed.from_main(lambda: append(self.folder / "samples.jsonl", samples_of(update, self.step)))
        return metrics_of(update, self.step, self.model, samples=samples)

    def spoilt(self) -> list[str]:
        """Return which weights and second moments are not finite that were so at the start."""
        return [name for name in spoilt(self.model, self.trainer.optimizer) if name not in self.never_finite]

    def _skip_update(self, update: Update) -> None:
        """Keep the batch of an update that was not taken, say so, and forget its gradients.

        Raises:
            StoppedError: the update is broken, so that training cannot go on.

        """
        bad, rollout, step = not_finite(self.model), update.rollout, self.step
        why = update.broken or f"not finite: {', '.join(bad) if rollout.finite() else 'the logits, while sampling'}"
        rewards = or_none(update.rewards) if self.trainer.algorithm.samples else []
        facts = {"rewards": rewards, "not_finite": bad}
        where = distributed.from_main(
            lambda: dump_batch(self.folder, step, why, rollout, update.examples, update.completions, facts)
        )
        self.trainer.forget_gradients()
        if update.broken:
            self.trainer.updates -= 1
            if self.step > self.saved:
                self.save()
            raise distributed.everywhere(StoppedError(f"update {step} was not taken: {update.broken}; {where}"))
        console.print(f"warning: update {step} was skipped, {why}; {where}")

    def log(self, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl, without numbers that are not finite; then the update is over."""
        finite = {name: x for name, x in metrics.items() if not isinstance(x, float) or math.isfinite(x)}
        distributed.from_main(lambda: append(self.folder / "metrics.jsonl", [finite]))
        self.trainer.stepping = False

    def save(self) -> Path:
        """Write a checkpoint: the model, its settings, the optimizer's state and the step; all processes call it."""
        model, optimizer = self.trainer.unsharded_model(), optimizer_tensors(self.trainer.optimizer)
        path = distributed.from_main(lambda: self._write_checkpoint(model, optimizer))
        self.saved = self.step
        return path

    def _write_checkpoint(self, model: HybridCausalLM, optimizer: dict[str, Tensor]) -> Path:
        path = self.folder / f"checkpoint-{self.step}"
        with files.new_folder(path, replaces=["*"]) as draft:
            model.write_files(draft)
            save_file(optimizer, draft / OPTIMIZER_FILE)
            (draft / STATE_FILE).write_text(json.dumps({"step": self.step, "threads": torch.get_num_threads()}) + "\n")
            write_checksums(draft)
        return path

    def save_unsaved(self, error: BaseException) -> Path | None:
        """Save the updates that no checkpoint holds, before an error ends the run; None where nothing was saved.

        In the midst of an update it is not. Where not all processes have come to this error the main one saves by
        itself, unless only all together have the weights.
        """
        if self.trainer.stepping or self.step == self.saved:
            return None
        if distributed.is_everywhere(error):
            return self.save()
        if self.trainer.sharded is not None or not distributed.is_main_process():
            return None
        return self._write_checkpoint(self.model, optimizer_tensors(self.trainer.optimizer))

    def validate(self) -> None:
        """Answer the held-out training problems greedily, and log how many are right; each update once."""
        due = distributed.from_main(lambda: bool(self.held_out) and self.step not in scores(self.folder))
        if due:
            model, batch = self.trainer.unsharded_model(), self.config.eval.batch
            answers = answer_problems(model, self.trainer.task, self.held_out, greedy=True, batch=batch)
            row = {"step": self.step, **summarize(answers)}
            distributed.from_main(lambda: append(self.folder / VALIDATION_FILE, [row]))

    def evaluation(self) -> dict[str, Any]:
        """Return what has been evaluated so far."""
        return evaluation_in(self.folder)

    def evaluated(self, when: str) -> bool:
        """Whether that evaluation is there, and on as many problems as are asked for: a resumed run may ask for others.

        Where none are asked for, one that is there stays.
        """
        problems, found = len(self.trainer.task.test[: self.config.eval.problems]), self.evaluation().get(when)
        return found is not None and problems in (0, found["greedy"]["problems"])

    def evaluate(self, when: str) -> dict[str, Any]:
        """Evaluate on the first test problems, and write the numbers and the answers."""
        task, config = self.trainer.task, self.config
        problems = task.test[: config.eval.problems]
        if not problems:
            return {}
        if when == "before" and self.step:
            model = initial_model(config.model, self.latent, config.seed, self.model)
        else:
            model = self.trainer.unsharded_model()
        seed, batch, label = config.seed, config.eval.batch, f"{when} training:"
        numbers, answers = evaluate(model, task, problems, seed=seed, batch=batch, label=label)
        distributed.from_main(lambda: keep_evaluation(self.folder, when, numbers, answers))
        return numbers
