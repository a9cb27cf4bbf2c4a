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
from hrpo.evaluation.entries import OWN, Entry, as_settings, make_entries
from hrpo.evaluation.inference import load_for_inference
from hrpo.evaluation.numbers import Answers, comparisons_of, numbers_of
from hrpo.evaluation.options import check_numbers, check_scorer
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


def evaluate_checkpoints(
    checkpoints: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    path: str = "",
    test_path: str = "",
    problems: int = 500,
    samples: int = 1,
    latent_modes: Sequence[str] = (OWN,),
    prompts: Sequence[str] = (OWN,),
    shots: int = 0,
    shots_path: str = "",
    scorer: str = "",
    max_new_tokens: int = 0,
    batch: int = 64,
    seed: int | None = None,
    out: str = "",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluate models on tasks, greedily and in samples, and compare any two of them.

    The folder gets settings.json before the first question is answered, then the answers, a part at a time, and at last
    results.json and results.md. Where it holds the same settings already, the evaluation goes on.

    Args:
        checkpoints: saved hybrid models, run folders (their newest checkpoint), or plain models.
        tasks: by name; none takes the task that the checkpoints were trained on.
        path: a training file, or a folder of one or several benchmarks.
        test_path: the test file, where it lies elsewhere.
        problems: test problems of each task, from the first; 0 takes all.
        samples: sampled answers to each problem, k; 0 leaves only the greedy one.
        latent_modes: each checkpoint is evaluated in each; "own" is the one it was trained in.
        prompts: each checkpoint is asked in each way: "own", "direct" or "cot".
        shots: worked examples before each question, instead of a checkpoint's own.
        shots_path: a file of rows that these are taken from, instead of the training problems.
        scorer: "own" or "math_string", of mathematical tasks; default the one of training.
        max_new_tokens: length limit of a completion; 0 leaves each model its own.
        batch: completions decoded at a time.
        seed: of generated problems, worked examples and samples; default that of the first checkpoint's run.
        out: the folder; default one in evaluations/ that these settings alone have.
        trust_remote_code: run code that comes with a base model.

    Returns:
        The settings, the numbers by task and model, and the comparisons.

    Raises:
        InputError: something cannot be used, or the folder holds an evaluation with other settings.

    """
    check_numbers(seed, problems=problems, samples=samples, shots=shots, max_new_tokens=max_new_tokens, batch=batch)
    check_scorer(scorer)
    entries = make_entries(
        checkpoints, latent_modes, prompts, shots, max_new_tokens, trust_remote_code=trust_remote_code
    )
    if seed is None:
        seed = next((entry.settings.seed for entry in entries if entry.settings.task), 0)
    questions = make_questions(
        tasks, entries, seed, path, test_path, problems=problems, shots=shots, shots_path=shots_path, scorer=scorer
    )
    return _evaluate(entries, questions, samples, batch, seed, out, trust_remote_code=trust_remote_code)


def _evaluate(
    entries: Sequence[Entry],
    questions: Sequence[Questions],
    samples: int,
    batch: int,
    seed: int,
    out: str,
    *,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """Let models answer questions, and write what comes of it; see `evaluate_checkpoints`."""
    settings = _settings_of(entries, questions, samples, batch, seed)
    folder = find(settings, out)
    models = Models(day_of(folder), trust_remote_code)
    check_writable(folder, "--out")
    if not (folder / SETTINGS_FILE).is_file():
        _check_prompts(entries, questions, models)
    refused = InputError("--out", f"another process evaluates in {folder}", "wait for it, or name another folder")
    lock = Lock.of(folder, refused)
    if not (find(settings, out) / SETTINGS_FILE).is_file():  # as it is now that nobody else writes there
        _begin(folder, settings, models)
    console.print(f"evaluation: {folder}")
    if (folder / DATE_FILE).is_file():
        console.print(f"a chat template writes today's date: in this evaluation it stays {models.day}")
    for asked in questions:
        show_dropped(asked.task)
    cells = _cells(entries, questions, samples, batch, folder, json.dumps(settings))
    for cell in cells:
        cell.check()
    for cell in cells:
        if not cell.path.is_file():
            answer(models.load(cell.entry.checkpoint), cell, seed=seed, batch=batch)
    results = {"settings": settings, **_numbers(cells, samples)}
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


def _settings_of(
    entries: Sequence[Entry], questions: Sequence[Questions], samples: int, batch: int, seed: int
) -> dict[str, Any]:
    """Return what settings.json holds: all that the answers depend on."""
    return {
        "checkpoints": {entry.label: as_settings(entry) for entry in entries},
        "tasks": {asked.name: asked.as_settings(entries) for asked in questions},
        "samples": samples,
        "seed": seed,
        "batch": batch,
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
    entries: Sequence[Entry], questions: Sequence[Questions], samples: int, batch: int, folder: Path, identity: str
) -> list[Cell]:
    """Return all cells of an evaluation; `identity` is of it alone."""
    hows = [("greedy", 1), *([("sampled", samples)] if samples else [])]
    return [
        Cell(
            entry,
            asked,
            how,
            count,
            max(1, ROUND * batch // count),
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
            raise InputError("--out", f"{folder} is there already and holds no evaluation", "name a new folder")
        return folder
    fix = "name another folder, or delete this one"
    there = read_json(folder / SETTINGS_FILE, "--out", fix)
    if not isinstance(there, dict):
        raise InputError("--out", f"{folder / SETTINGS_FILE} is damaged (it holds no settings)", fix)
    changed = sorted(differences(there, json.loads(text)))
    if changed:
        raise InputError(
            "--out",
            f"{folder} holds an evaluation with other settings ({', '.join(changed)} differ)",
            "an evaluation keeps its settings, so name another folder",
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
