"""Ask a checkpoint something, and show what went into each of its inputs."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hrpo.config import TaskConfig
from hrpo.errors import InputError, model_named_by
from hrpo.evaluate import as_rows, evaluate
from hrpo.files import check_writable, write_text
from hrpo.limits import check_test_prompts, context_length
from hrpo.model import HybridCausalLM
from hrpo.prompts import decode, encode
from hrpo.rollout import Rollout, generate
from hrpo.tasks import is_file, load_task, remembered
from hrpo.tasks.task import ask
from hrpo.trainer import model_in

TRACED_CANDIDATES = 5


def load_for_inference(name: str, *, trust_remote_code: bool = False) -> HybridCausalLM:
    """Load a checkpoint, a run folder's newest one, or a plain model.

    A saved model decodes in the mode it was trained in; a plain one has no trained gate, so it decodes discretely.
    """
    with model_named_by("--checkpoint"):
        return HybridCausalLM.from_pretrained(
            model_in(name),
            device=Accelerator().device,
            latent_mode="discrete",
            trust_remote_code=trust_remote_code,
        )


def complete(
    checkpoint: str,
    questions: Sequence[str],
    *,
    sample: bool = False,
    seed: int = 0,
    trace: bool = False,
    trust_remote_code: bool = False,
) -> Iterator[str]:
    """Yield the completion of each question, and with `trace` a line per token before it."""
    model = load_for_inference(checkpoint, trust_remote_code=trust_remote_code)
    settings = model.settings
    prompts = encode(model.tokenizer, [ask(settings.preamble, question) for question in questions])
    context = context_length(model) or math.inf
    room = context - max(map(len, prompts))
    if room < 1:
        raise InputError(
            f"PROMPT: {context - room:g} tokens leave no room in the model's context of {context}; shorten it"
        )
    rollout = generate(
        model,
        prompts,
        max_new_tokens=int(min(settings.max_new_tokens, room)),
        temperature=settings.temperature,
        top_k=settings.top_k,
        greedy=not sample,
        seed=seed,
    )
    for row, text in enumerate(decode(model.tokenizer, rollout)):
        if trace:
            yield from trace_lines(model, rollout, row)
        yield text


def evaluate_checkpoint(
    checkpoint: str,
    *,
    task: str = "",
    test_path: str = "",
    problems: int = 500,
    batch: int = 64,
    seed: int | None = None,
    out: str = "",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint greedily and sampled on its own task, asked and decoded as in training.

    Args:
        checkpoint: a saved hybrid model, or a run folder for its newest one.
        task: evaluate on this task instead, asked as in training. A plain model has no task but this; a task that is
            a file runs only where it is named here, since a checkpoint may come from anywhere.
        test_path: the test file, where it lies elsewhere than in training.
        problems: how many test problems, from the first; 0 takes all.
        batch: problems decoded at a time.
        seed: of the sampled completions; default the run's own.
        out: write the numbers and every answer to this JSON file.
        trust_remote_code: run code that comes with the base model.

    Raises:
        InputError: no task is known for this model, or its test file is missing.

    """
    for holds, message in (
        (problems >= 0, f"--problems: must be at least 0, got {problems}"),
        (batch >= 1, f"--batch: must be at least 1, got {batch}"),
        (not Path(out).is_dir() or not out, f"--out: {out} is a folder; name a file in it"),
    ):
        if not holds:
            raise InputError(message)
    if out:
        check_writable(Path(out).parent, "--out")
    model = load_for_inference(checkpoint, trust_remote_code=trust_remote_code)
    settings = model.settings
    seed = settings.seed if seed is None else seed
    saved = _task_to_evaluate(checkpoint, settings.task, task, test_path)
    problem_set = load_task(saved, settings.seed, test_only=True)
    if settings.task:
        problem_set = dataclasses.replace(problem_set, preamble=settings.preamble)
    chosen = problem_set.test[: problems or len(problem_set.test)]
    if not chosen:
        raise InputError(f"--task: {saved.name} has no test problems to evaluate on")
    # A plain model remembers no length limit that its context would have to leave room for.
    check_test_prompts(problem_set, model, chosen, settings.max_new_tokens if settings.task else 1, "--task")
    numbers, answers = evaluate(model, problem_set, chosen, seed=seed, batch=batch, label="evaluation:")
    result = {"checkpoint": checkpoint, "settings": dataclasses.asdict(settings), "seed": seed, **numbers}
    if out:
        rows = {how: as_rows(part) for how, part in answers.items()}
        write_text(Path(out), json.dumps({**result, "answers": rows}, indent=1) + "\n")
    return result


def _task_to_evaluate(checkpoint: str, saved: dict[str, Any], task: str, test_path: str) -> TaskConfig:
    """Return the task's settings: the checkpoint's own, or those of the task that is asked for."""
    if not saved and not task:
        raise InputError(f"--task: {checkpoint} is a plain model that remembers no task; name one")
    trained = TaskConfig(**saved)
    if not task and is_file(trained.name):
        raise InputError(
            f"--task: this checkpoint's task is a file, whose code runs only if you say so: --task {trained.name}"
        )
    if task and not (saved and remembered(TaskConfig(task))["name"] == trained.name):
        return TaskConfig(task, test_path=test_path)
    own = dataclasses.replace(trained, rewards={"correct": 1.0}, shots=0)
    if test_path or own.test_path:
        own = dataclasses.replace(own, path="", test_path=test_path or own.test_path)
    return own


def trace_lines(model: HybridCausalLM, rollout: Rollout, row: int) -> Iterator[str]:
    """Yield a line per token of one completion: probability, mean a, hidden ratio, strongest latent candidates."""

    def show(token: int) -> str:
        return repr(model.tokenizer.decode([token]))  # type: ignore[union-attr]

    yield f"{'token':14} {'p':>6} {'a':>6} {'hidden':>6}  latent candidates, at temperature {rollout.temperature:g}"
    for t in range(int(rollout.lengths[row])):
        token, a = int(rollout.completion_ids[row, t]), rollout.gate_mean[row, t]
        p = rollout.sample_logprobs[row, t].exp()
        line = f"{show(token):14} {p:6.3f} "
        if rollout.hybrid_mask[row, t]:
            ids, probs = rollout.support_ids[row, t], rollout.support_probs[row, t]
            candidates = "  ".join(
                f"{show(int(i))} {q:.3f}" for i, q in zip(ids[:TRACED_CANDIDATES], probs, strict=False) if q >= 0.0005
            )
            line += f"{a:6.3f} {torch.sqrt(1 - a**2):6.3f}  {candidates}"
        else:
            line += f"{'-':>6} {'-':>6}  fed as it is"
        yield line
