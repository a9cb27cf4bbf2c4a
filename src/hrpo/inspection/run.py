"""`hrpo inspect`: checkpoints on a task's test problems, and the page of it."""

import functools
from collections.abc import Sequence
from pathlib import Path

from hrpo.chat import encode
from hrpo.common.console import bar
from hrpo.common.errors import InputError
from hrpo.common.files import check_writable
from hrpo.config.bounds import OPTIONS, outside_of
from hrpo.data import sample_key
from hrpo.evaluation.entries import OWN, Entry, make_entries
from hrpo.evaluation.inference import load_for_inference
from hrpo.evaluation.questions import Questions, make_questions
from hrpo.evaluation.run import asked_of
from hrpo.inspection.page import Page, make_page
from hrpo.inspection.record import Column, Json, column_of, map_of
from hrpo.inspection.show import judge_all, problems_of
from hrpo.inspection.vocabulary import gates_of
from hrpo.latent import mode_of
from hrpo.model import HybridCausalLM
from hrpo.rollout import generate
from hrpo.training.length_filter import check_test_prompts


def inspect_checkpoints(
    checkpoints: Sequence[str],
    out: str,
    *,
    task: str = "",
    path: str = "",
    test_path: str = "",
    problems: int = 50,
    latent_modes: Sequence[str] = (OWN,),
    sample: bool = False,
    seed: int | None = None,
    max_new_tokens: int = 0,
    batch: int = 64,
    trust_remote_code: bool = False,
) -> Page:
    """Let checkpoints answer test problems, and write a page with all that went into each token.

    Args:
        checkpoints: saved hybrid models, run folders (their newest checkpoint), or plain models.
        out: the HTML file; one that is there is replaced.
        task: by name; left out, the one that the checkpoints were trained on.
        path: a training file, or a folder with the task's files.
        test_path: the test file, where it lies elsewhere.
        problems: test problems, from the first; 0 takes all.
        latent_modes: each checkpoint answers in each; "own" is the one it was trained in.
        sample: draw each token, as `hrpo eval` draws the first sample of a problem, instead of the likeliest one.
        seed: of generated problems and of the draws; default that of the first checkpoint's run.
        max_new_tokens: length limit of a completion; 0 leaves each model its own.
        batch: completions decoded at a time.
        trust_remote_code: run code that comes with a base model.

    Raises:
        InputError: something cannot be used.

    """
    _check_bounds(problems=problems, max_new_tokens=max_new_tokens, batch=batch, seed=seed or 0)
    _check_out(out)
    entries = make_entries(checkpoints, latent_modes, [OWN], 0, max_new_tokens, trust_remote_code=trust_remote_code)
    if seed is None:
        seed = next((entry.settings.seed for entry in entries if entry.settings.task), 0)
    (asked,) = make_questions(
        [task] if task else [],
        entries,
        seed,
        path=path,
        test_path=test_path,
        problems=problems,
        shots=0,
        shots_path="",
        scorer="",
    )
    columns = _columns(entries, asked, trust_remote_code, sample=sample, seed=seed, batch=batch)
    page = make_page(asked.name, problems_of(asked.problems), 1, columns)
    page.save(out)
    return page


def _check_bounds(**given: int) -> None:
    """Refuse options outside of their bounds."""
    if wrong := outside_of(OPTIONS, given):
        names = {name: f"--{name}" for name in given} | {"problems": "-n"}
        raise InputError.joined([error.renamed(names) for error in wrong])


def _check_out(out: str) -> None:
    """Refuse what cannot become the HTML file."""
    if Path(out).is_dir():
        raise InputError("--out", f"{out} is a folder", "name an HTML file")
    check_writable(Path(out).parent, "--out")


def _columns(
    entries: Sequence[Entry], asked: Questions, trust_remote_code: bool, *, sample: bool, seed: int, batch: int
) -> list[Column]:
    """Return what each entry answers; a checkpoint is loaded once for all of its modes."""
    columns, name, model = list[Column](), "", None
    for entry in entries:
        gates = None
        if model is None or entry.checkpoint != name:  # an entry's modes come one after another
            model, name = load_for_inference(entry.checkpoint, trust_remote_code=trust_remote_code), entry.checkpoint
            gates = _map(model, entry) if mode_of(model.settings.latent_mode).gated else None
        columns.append(_column(model, entry, asked, gates, sample=sample, seed=seed, batch=batch))
    return columns


def _map(model: HybridCausalLM, entry: Entry) -> Json:
    with bar(f"{entry.label} vocabulary", min(model.vocab_size, len(model.embedding.weight))) as progress:
        return map_of(*gates_of(model, functools.partial(progress.advance, every=10)))


def _column(
    model: HybridCausalLM, entry: Entry, asked: Questions, gates: Json | None, *, sample: bool, seed: int, batch: int
) -> Column:
    settings = model.settings = entry.settings
    task = asked_of(entry, asked)
    check_test_prompts(task, model, asked.problems, settings.max_new_tokens, "--max_new_tokens")
    with bar(f"{entry.label} {asked.name}", len(asked.problems)) as progress:
        rollout = generate(
            model,
            encode(model.tokenizer, [task.messages(example.question) for example in asked.problems]),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            greedy=not sample,
            sample_keys=[sample_key("eval", seed, asked.name, place, 0) for place in range(len(asked.problems))],
            max_rows=batch,
            on_finished=functools.partial(progress.advance, every=10),
        )
    judged = judge_all(task, asked.problems, model, rollout)
    update = f", update {settings.step}" if settings.step else ""
    said = f"{entry.checkpoint}{update}, {f'sampled, seed {seed}' if sample else 'greedy'}"
    return column_of(entry.label, rollout, model, judged, gates, said)
