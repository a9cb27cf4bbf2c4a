"""An evaluation from its settings to its tables."""

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hrpo.common.console import bar, console
from hrpo.common.errors import InputError
from hrpo.common.files import check_writable, read_json, write_text
from hrpo.common.locks import Lock
from hrpo.data import sample_key
from hrpo.evaluate import answer_round
from hrpo.evaluation import store
from hrpo.evaluation.cells import Cell
from hrpo.evaluation.entries import Entry, as_settings, make_entries
from hrpo.evaluation.inference import load_for_inference
from hrpo.evaluation.numbers import Answers, comparisons_of, numbers_of
from hrpo.evaluation.options import Options
from hrpo.evaluation.questions import Questions, make_questions
from hrpo.evaluation.tables import markdown
from hrpo.model import HybridCausalLM
from hrpo.models.dates import DATE_FILE, day_of, pin_date
from hrpo.storage.run_dir import differences
from hrpo.tasks import Task
from hrpo.training.length_filter import check_test_prompts, show_dropped

FOLDER, SETTINGS_FILE = Path("evaluations"), "settings.json"
ROUND = 4  # batches of completions in a part: what an interruption loses at most
VERSIONS = ("hrpo", "torch", "transformers", "peft", "numpy", "math-verify")


def evaluate_checkpoints(checkpoints: Sequence[str], **options: Any) -> dict[str, Any]:
    """Evaluate models on tasks, greedily and in samples, and compare any two of them.

    The folder gets settings.json before the first question is answered, then the answers, a part at a time, and at last
    results.json and results.md. Where it holds the same settings already, the evaluation goes on.

    Args:
        checkpoints: saved hybrid models, run folders (their newest checkpoint), or plain models.
        options: those of `hrpo.evaluation.options.Options`, by their names.

    Returns:
        The settings, the numbers by task and model, and the comparisons.

    Raises:
        InputError: something cannot be used, or the folder holds an evaluation with other settings.

    """
    given = Options(**options)
    entries, questions, seed = _asked(checkpoints, given)
    settings = _settings_of(entries, questions, given, seed)
    folder = find(settings, given.out)
    models = Models(day_of(folder), given.trust_remote_code)
    check_writable(folder, "--out")
    if not (folder / SETTINGS_FILE).is_file():
        _check_prompts(entries, questions, models)
    lock = Lock.of(folder, f"--out: another process evaluates in {folder}; wait for it, or name another folder")
    if not (find(settings, given.out) / SETTINGS_FILE).is_file():  # as it is now that nobody else writes there
        _begin(folder, settings, models)
    console.print(f"evaluation: {folder}")
    if (folder / DATE_FILE).is_file():
        console.print(f"a chat template writes today's date: in this evaluation it stays {models.day}")
    for asked in questions:
        show_dropped(asked.task)
    cells = _cells(entries, questions, given, folder, json.dumps(settings))
    for cell in cells:
        cell.check()
    for cell in cells:
        if not cell.path.is_file():
            answer(models.load(cell.entry.checkpoint), cell, seed=seed, batch=given.batch)
    results = {"settings": settings, **_numbers(cells, given.samples)}
    write_text(folder / "results.md", markdown(results))
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    lock.release()
    return results


class Models:
    """The models of an evaluation, loaded one at a time; their chat templates keep to one day.

    Args:
        day: which they keep to.
        trust_remote_code: run code that comes with a base model.

    """

    def __init__(self, day: datetime.date, trust_remote_code: bool) -> None:
        self.day, self.trust_remote_code = day, trust_remote_code
        self.dated = False  # a template has asked for the date
        self.loaded: dict[str, HybridCausalLM] = {}

    def load(self, name: str) -> HybridCausalLM:
        """Return a model; the one before is let go."""
        if name not in self.loaded:
            self.loaded.clear()
            self.loaded[name] = load_for_inference(name, trust_remote_code=self.trust_remote_code)
            self.dated |= pin_date(self.loaded[name].tokenizer, self.day)
        return self.loaded[name]


def _asked(checkpoints: Sequence[str], given: Options) -> tuple[list[Entry], list[Questions], int]:
    """Return who is asked, what, and with which seed."""
    entries = make_entries(
        checkpoints,
        given.latent_modes,
        given.prompts,
        given.shots,
        given.max_new_tokens,
        trust_remote_code=given.trust_remote_code,
    )
    seed = given.seed
    if seed is None:
        seed = next((entry.settings.seed for entry in entries if entry.settings.task), 0)
    questions = make_questions(
        given.tasks,
        entries,
        seed,
        path=given.path,
        test_path=given.test_path,
        problems=given.problems,
        shots=given.shots,
        shots_path=given.shots_path,
        scorer=given.scorer,
    )
    return entries, questions, seed


def _settings_of(entries: Sequence[Entry], questions: Sequence[Questions], given: Options, seed: int) -> dict[str, Any]:
    """Return what settings.json holds: all that the answers depend on."""
    return {
        "checkpoints": {entry.label: as_settings(entry) for entry in entries},
        "tasks": {asked.name: asked.as_settings(entries) for asked in questions},
        "samples": given.samples,
        "seed": seed,
        "batch": given.batch,
        "device": Accelerator().device.type,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }


def _check_prompts(entries: Sequence[Entry], questions: Sequence[Questions], models: Models) -> None:
    """Refuse questions that leave a model no room for its answer."""
    for entry, asked in itertools.product(entries, questions):
        task, limit = asked_of(entry, asked), entry.settings.max_new_tokens
        check_test_prompts(task, models.load(entry.checkpoint), asked.problems, limit, "--max_new_tokens")


def _begin(folder: Path, settings: dict[str, Any], models: Models) -> None:
    """Write the settings, and the day where a template asks for it."""
    write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")
    if models.dated:
        write_text(folder / DATE_FILE, f"{models.day}\n")


def _cells(
    entries: Sequence[Entry], questions: Sequence[Questions], given: Options, folder: Path, identity: str
) -> list[Cell]:
    """Return all cells of an evaluation; `identity` is of it alone."""
    hows = [("greedy", 1), *([("sampled", given.samples)] if given.samples else [])]
    return [
        Cell(
            entry,
            asked,
            how,
            count,
            max(1, ROUND * given.batch // count),
            folder / "answers" / f"{place}-{_plain(entry.label)}" / _file(asked.name, how),
            hashlib.sha256("\n".join([identity, entry.label, asked.name, how]).encode()).hexdigest(),
        )
        for place, entry in enumerate(entries)
        for asked in questions
        for how, count in hows
    ]


def _numbers(cells: Sequence[Cell], samples: int) -> dict[str, Any]:
    """Return the numbers by task and model, and the comparisons, from the answers of all cells."""
    answers: dict[str, dict[str, Answers]] = {cell.questions.name: {} for cell in cells}
    for cell in cells:
        store.finish(cell.path)
        by_how = answers[cell.questions.name].setdefault(cell.entry.label, {})
        answers[cell.questions.name][cell.entry.label] = {**by_how, cell.how: store.load(cell.path)}
    return {
        "tasks": {
            name: {label: numbers_of(by_how, samples) for label, by_how in models.items()}
            for name, models in answers.items()
        },
        "comparisons": comparisons_of(answers, samples),
    }


def find(settings: dict[str, Any], out: str) -> Path:
    """Return the folder of an evaluation, new or with these settings in it.

    Raises:
        InputError: the folder holds other settings, or something else.

    """
    text = json.dumps(settings)
    tasks = "-".join(_plain(name) for name in settings["tasks"])
    folder = Path(out) if out else FOLDER / f"{tasks}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not (folder / SETTINGS_FILE).is_file():
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"--out: {folder} is there already and holds no evaluation; name a new folder")
        return folder
    fix = "name another folder, or delete this one"
    there = read_json(folder / SETTINGS_FILE, "--out", fix)
    if not isinstance(there, dict):
        raise InputError(f"--out: {folder / SETTINGS_FILE} is damaged (it holds no settings); {fix}")
    changed = sorted(differences(there, json.loads(text)))
    if changed:
        raise InputError(
            f"--out: {folder} holds an evaluation with other settings ({', '.join(changed)} differ); an evaluation "
            "keeps its settings, so name another folder"
        )
    return folder


def asked_of(entry: Entry, asked: Questions) -> Task:
    """Return the task as a model is asked it."""
    return dataclasses.replace(asked.task, preamble=asked.preamble(entry))


def answer(model: HybridCausalLM, cell: Cell, *, seed: int, batch: int) -> None:
    """Let a model answer what is left of a cell.

    A sample's random numbers depend on (seed, task, problem, sample) alone.
    """
    model.settings = cell.entry.settings
    asked, k = cell.questions, cell.samples
    task = asked_of(cell.entry, asked)
    left = {number: places for number, (path, places) in enumerate(cell.parts().items()) if not path.is_file()}
    total = len(asked.problems)
    done = total - sum(map(len, left.values()))
    with bar(f"{cell.entry.label} {asked.name} {cell.how}", k * total, k * done) as progress:
        for number, places in left.items():
            part = asked.problems[places.start : places.stop]
            answers = answer_round(
                model,
                task,
                part,
                greedy=cell.how == "greedy",
                keys=[sample_key("eval", seed, asked.name, place, g) for place in places for g in range(k)],
                samples=k,
                batch=batch,
                on_finished=functools.partial(progress.advance, every=10),
            )
            store.append(cell.path, number, places.start, k, answers, cell.mark)
    store.finish(cell.path)


def _file(task: str, how: str) -> str:
    return f"{_plain(task)}-{how}.parquet"


def _plain(name: str) -> str:
    """Return a name as a file may have it."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
