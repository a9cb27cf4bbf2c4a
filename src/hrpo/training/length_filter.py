"""Prompts that are too long: left out and counted, or refused."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from hrpo.chat import encode
from hrpo.common.console import console
from hrpo.common.errors import InputError
from hrpo.config.schema import LongPrompts, RolloutConfig, Target, length_limit
from hrpo.model import HybridCausalLM
from hrpo.models.context import context_of, context_text
from hrpo.sft import written_ids
from hrpo.tasks import Example, Task

CHUNK = 1000  # conversations tokenized at a time


def context_length(model: HybridCausalLM) -> int | None:
    """Return the positions that the model serves, see `context_of`."""
    return context_of(model.bare_lm.config)


def longest_prompt(
    model: HybridCausalLM, max_new_tokens: int, max_prompt_tokens: int = 0, field: str = "rollout.max_new_tokens"
) -> int | None:
    """Return how many tokens a prompt may have: the setting, and what the model's context leaves; None for no limit.

    Raises:
        InputError: the context is full without a prompt; names `field`.

    """
    context = context_length(model)
    room = None if context is None else context - max_new_tokens
    if room is not None and room < 1:
        raise InputError(
            field,
            f"{max_new_tokens} leave no room for a prompt in the model's {context_text(model.bare_lm.config)}",
            "lower it",
        )
    limits = [limit for limit in (room, max_prompt_tokens) if limit]
    return min(limits, default=None)


def fitting(task: Task, model: HybridCausalLM, rollout: RolloutConfig, tested: int, target: Target | None) -> Task:
    """Return the task without the training problems whose prompt is too long; `dropped` counts them.

    Of a problem set that is generated as it goes only the first is looked at; its prompts are all alike.

    Args:
        task: all of it.
        model: whose context it is.
        rollout: the limits.
        tested: test problems that are asked, from the first.
        target: what of a solution is learnt to write; None where completions are sampled.

    Raises:
        InputError: the chat template leaves out some of a prompt; or nothing is left; or some are too long and
            `rollout.long_prompts` is "refuse"; or a test prompt is too long, which could not be left out without
            changing what is measured.

    """
    encode(model.tokenizer, [task.messages(example.question) for example in task.train[:1]])
    most = length_limit(rollout.max_new_tokens, context_length(model))
    limit = longest_prompt(model, most, rollout.max_prompt_tokens)
    endless = not isinstance(task.train, list)
    train = [task.train[0]] if endless else list(task.train)
    drop = set(too_long(model, task, train, limit))
    if drop and endless:
        raise InputError(
            "rollout.max_prompt_tokens",
            f"training problems have prompts above {limit} tokens, the most that it and "
            "rollout.max_new_tokens leave in the model's "
            f"{context_text(model.bare_lm.config)}",
            "raise it, lower rollout.max_new_tokens, or show fewer worked examples (task.num_fewshot)",
        )
    said = f"of {len(train)} training problems {len(drop)} have a prompt above {limit} tokens"
    if drop and rollout.long_prompts == "refuse":
        raise InputError("rollout.max_prompt_tokens", said, "raise it, or set rollout.long_prompts to drop")
    if drop and len(drop) == len(train):
        raise InputError(
            "rollout.max_prompt_tokens",
            f"{said}, which leaves none",
            "raise it, or show fewer worked examples (task.num_fewshot)",
        )
    check_test_prompts(task, model, task.test[:tested], most, "rollout.max_new_tokens")
    task = _without(task, {f"training problems with a prompt above {limit} tokens": drop} if drop else {})
    return task if target is None else _written(task, model, target, rollout.long_prompts)


def _without(task: Task, dropped: Mapping[str, set[int]]) -> Task:
    """Return the task without some training problems, by why and their places; the same one where there are none."""
    drop = set[int]().union(*dropped.values())
    if not drop:  # the problems may be a billion, each made when it is asked for
        return task
    kept = [example for i, example in enumerate(task.train) if i not in drop]
    counts = {why: len(places) for why, places in dropped.items()}
    return dataclasses.replace(task, train=kept, dropped={**task.dropped, **counts})


def _written(task: Task, model: HybridCausalLM, target: Target, long_prompts: LongPrompts) -> Task:
    """Return the task without the problems whose solution cannot be taught, or is too long together with its prompt."""
    context = context_length(model) or math.inf
    if not isinstance(task.train, list):
        written_ids(model, task, task.train[:1], target)
        return task
    long, apart, refusal = set[int](), set[int](), None
    for i, example in enumerate(task.train):
        try:
            (prompt,), (answer,) = written_ids(model, task, [example], target)
        except InputError as error:
            apart, refusal = apart | {i}, error
        else:
            long |= {i} if len(prompt) + len(answer) > context else set()
    if refusal and (len(apart) == len(task.train) or long_prompts == "refuse"):
        raise refusal
    which = f"training problems that have with their {target} over {context} tokens"
    said = f"{len(long)} of {len(task.train)} {which}"
    if long and long_prompts == "refuse":
        raise InputError("sft.target", said, "set task.max_solution_chars, or rollout.long_prompts to drop")
    if len(long | apart) == len(task.train):
        raise InputError("sft.target", f"{said}, which leaves none", "take answer, or a model with a longer context")
    dropped = {
        which: long,
        f"training problems whose {target} the chat template does not write after its prompt": apart,
    }
    return _without(task, {name: places for name, places in dropped.items() if places})


def show_dropped(task: Task) -> None:
    """Say which training problems are left out, and why."""
    for which, count in task.dropped.items():
        console.print(f"{task.name}: left out {count} {which}")


def check_test_prompts(
    task: Task, model: HybridCausalLM, problems: Sequence[Example], max_new_tokens: int, field: str
) -> None:
    """Refuse test problems that leave no room for their answer in the model's context.

    Raises:
        InputError: names `field`.

    """
    limit = longest_prompt(model, max_new_tokens, field=field)
    count = len(too_long(model, task, problems, limit))
    if count:
        raise InputError(
            field,
            f"{count} of {len(problems)} test prompts have over {limit} tokens, so that the "
            f"model's {context_text(model.bare_lm.config)} has no room for {max_new_tokens} "
            "more",
            "take shorter prompts (task.num_fewshot) or answers, or another model",
        )


def too_long(model: HybridCausalLM, task: Task, problems: Sequence[Example], limit: int | None) -> list[int]:
    """Return which problems have a prompt of more than `limit` tokens."""
    if limit is None or not problems:
        return []
    # A token holds a byte of text at least, so that most need no tokenizing.
    around = len(encode(model.tokenizer, [task.messages("")])[0])
    unsure = [i for i, problem in enumerate(problems) if around + len(problem.question.encode()) > limit]
    found = []
    for at in range(0, len(unsure), CHUNK):
        part = unsure[at : at + CHUNK]
        prompts = encode(model.tokenizer, [task.messages(problems[i].question) for i in part])
        found += [i for i, prompt in zip(part, prompts, strict=True) if len(prompt) > limit]
    return found
