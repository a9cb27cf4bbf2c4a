"""Answers of a model to a task's test problems, and their accuracy; a run evaluates itself before and after."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hrpo.chat import decode, encode, id_lists
from hrpo.common import distributed
from hrpo.common.console import bar
from hrpo.common.errors import StoppedError
from hrpo.common.statistics import metric_interval, wilson
from hrpo.data import Rollout, sample_key
from hrpo.model import HybridCausalLM
from hrpo.rollout import generate
from hrpo.tasks import Example, Task
from hrpo.tasks.base import RewardContext
from hrpo.tasks.judge import DELIMITER

ROUND = 8  # batches decoded together, one problem taking the row of another; a round's candidates are held in memory


@dataclass(frozen=True)
class Answer:
    """One completion of a test problem.

    `hidden_ratio` is the mean over its `mixed` positions, 0 without any; `metric` is of tasks that have one, where it
    has something to say.
    """

    question: str
    gold: str | list[str]
    completion: str
    strict: bool
    lenient: bool
    length: int
    truncated: bool
    mixed: int
    hidden_ratio: float
    metric: float | None = None


def answer_round(
    model: HybridCausalLM,
    task: Task,
    problems: Sequence[Example],
    *,
    greedy: bool,
    keys: Sequence[int],
    samples: int = 1,
    batch: int = 64,
    on_finished: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Complete problems with the decoding settings that the model remembers, all in one go, and judge them.

    Args:
        model: it decodes in its own latent mode.
        task: how to ask and how to judge.
        problems: what to ask; the prompt of each is computed once.
        greedy: the likeliest token at each step, or samples.
        keys: of the samples, a key for each of the completions.
        samples: completions of each problem, k.
        batch: completions decoded at a time; it changes nothing but memory and time.
        on_finished: called with the number of completions that have just been finished.

    Returns:
        The answers, a problem's side by side.

    Raises:
        StoppedError: the model's logits are not numbers.

    """
    settings = model.settings
    rollout = generate(
        model,
        encode(model.tokenizer, [task.messages(example.question) for example in problems]),
        group_size=samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        greedy=greedy,
        sample_keys=keys,
        max_rows=batch,
        on_finished=on_finished,
    )
    check_finite(model, rollout)
    return _judged(model, task, [example for example in problems for _ in range(samples)], rollout)


def _judged(model: HybridCausalLM, task: Task, asked: Sequence[Example], rollout: Rollout) -> list[Answer]:
    """Return a rollout's completions as answers to the problems that they were asked."""
    ratio = (1 - rollout.gate_mean**2).sqrt()  # 0 where no mixed input was fed
    mixed = rollout.hybrid_mask.sum(1)
    ratios = (ratio.sum(1) / mixed.clamp(min=1)).tolist()
    cut, lengths = rollout.truncated(model.eos_token_ids).tolist(), rollout.lengths.tolist()
    texts = decode(model.tokenizer, rollout)
    verdicts, metrics = task.assess(texts, asked, RewardContext(id_lists(rollout), model.settings.step))
    return [
        Answer(
            question=asked[i].question,
            gold=asked[i].gold,
            completion=text,
            strict=verdict.strict,
            lenient=verdict.lenient,
            length=lengths[i],
            truncated=cut[i],
            mixed=int(mixed[i]),
            hidden_ratio=ratios[i],
            metric=None if metrics is None else metrics[i],
        )
        for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))
    ]


def answer_problems(
    model: HybridCausalLM,
    task: Task,
    problems: Sequence[Example],
    *,
    greedy: bool,
    seed: int = 0,
    batch: int = 64,
    on_finished: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Complete each problem once; see `answer_round`. With the problem's place, `seed` gives a sample its key.

    Several processes share the problems; all must call this, and all get all answers.
    """
    answers = list[Answer]()
    mine = distributed.local_slice(len(problems))
    for first in range(mine.start, mine.stop, ROUND * batch):
        places = range(first, min(first + ROUND * batch, mine.stop))
        part = problems[places.start : places.stop]
        keys = [sample_key("eval", seed, i) for i in places]
        answers += answer_round(model, task, part, greedy=greedy, keys=keys, batch=batch, on_finished=on_finished)
    return [answer for part in distributed.gather(answers) for answer in part]


def evaluate(
    model: HybridCausalLM, task: Task, problems: Sequence[Example], *, seed: int, batch: int, label: str
) -> tuple[dict[str, Any], dict[str, list[Answer]]]:
    """Answer the problems greedily and sampled; show how far it is.

    Returns:
        Numbers and answers, by "greedy" and "sampled".

    """
    answers = {}
    for how in ("greedy", "sampled"):
        with bar(f"{label} {how}", len(distributed.local_slice(len(problems)))) as progress:
            advance = functools.partial(progress.advance, every=10)
            answers[how] = answer_problems(
                model, task, problems, greedy=how == "greedy", seed=seed, batch=batch, on_finished=advance
            )
    return {how: summarize(part) for how, part in answers.items()}, answers


def summarize(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return accuracy (strict and lenient) with 95 % intervals, mean length (tokens), hidden ratio and shares.

    Where the task has a metric of its own, its mean and interval too.
    """
    n = len(answers)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / n

    strict, lenient = sum(a.strict for a in answers), sum(a.lenient for a in answers)
    metrics = [a.metric for a in answers if a.metric is not None]
    own = {"metric": mean(metrics), "metric_interval": metric_interval(metrics)} if metrics else {}
    return {
        "problems": n,
        "accuracy": strict / n,
        "accuracy_interval": wilson(strict, n),
        "lenient_accuracy": lenient / n,
        "lenient_accuracy_interval": wilson(lenient, n),
        **own,
        "format_rate": mean([a.completion.count(DELIMITER) == 1 for a in answers]),
        "length": mean([a.length for a in answers]),
        "truncation_rate": mean([a.truncated for a in answers]),
        "hidden_ratio": sum(a.hidden_ratio * a.mixed for a in answers) / max(sum(a.mixed for a in answers), 1),
    }


def as_rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return the answers as plain dictionaries."""
    return [asdict(answer) for answer in answers]


def check_finite(model: HybridCausalLM, rollout: Rollout) -> None:
    """Refuse completions that were drawn from logits that are no numbers.

    Raises:
        StoppedError: they were.

    """
    if not rollout.finite():
        raise StoppedError(
            f"the logits of {model.settings.base_model} are not finite after {model.settings.step} updates: "
            f"its weights are spoiled, or {model.settings.dtype} is too narrow for it (model.dtype)"
        )
