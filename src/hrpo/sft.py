"""Supervised fine-tuning on written solutions: a warm start, and the paper's SFT baseline."""

import itertools
from collections.abc import Sequence

import torch

from hrpo.chat import encode
from hrpo.common.errors import InputError
from hrpo.config.schema import Target
from hrpo.data import Rollout, left_pad
from hrpo.model import HybridCausalLM
from hrpo.tasks import Example, Task
from hrpo.tasks.base import Message
from hrpo.tasks.judge import DELIMITER


def target_text(example: Example, target: Target) -> str:
    """Return what the model is to write.

    Args:
        example: the problem.
        target: "answer" is `#### GOLD`, the first gold answer where there are several; "solution" is the written
            solution, which gets that line at its end unless it has a delimiter already.

    Raises:
        InputError: there is no written solution.

    """
    gold = example.gold if isinstance(example.gold, str) else example.gold[0]
    answer = f"{DELIMITER} {gold}"
    if target == "answer":
        return answer
    if not example.solution:
        raise InputError("sft.target", "this task has problems without a written solution", "set sft.target to answer")
    return example.solution if DELIMITER in example.solution else f"{example.solution}\n{answer}"


def teacher_forced_rollout(model: HybridCausalLM, task: Task, examples: Sequence[Example], target: Target) -> Rollout:
    """Return the written solutions as completions of their problems, fed as plain tokens: N rows.

    A completion is the assistant's turn as the chat template writes it: see `written_ids`, which raises the errors.
    """
    prompts, rows = written_ids(model, task, examples, target)
    pad = (model.eos_token_ids or [0])[0]
    prompt_ids, prompt_mask = left_pad(prompts, pad, model.device)
    backwards, mask = left_pad([row[::-1] for row in rows], pad, model.device)
    N, T = mask.shape
    real = torch.float64 if model.lm_dtype == torch.float64 else torch.float32
    zeros = torch.zeros(N, T, dtype=real, device=model.device)
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=backwards.flip(1),
        completion_mask=mask.flip(1),
        hybrid_mask=zeros.bool(),
        sample_logprobs=zeros,
        support_ids=zeros.new_zeros(N, T, 0, dtype=torch.int32),
        support_probs=zeros.new_zeros(N, T, 0),
        gate_mean=zeros + 1,
        group_size=1,
        temperature=model.settings.temperature,
        top_k=0,
    )


def written_ids(
    model: HybridCausalLM, task: Task, examples: Sequence[Example], target: Target
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of the prompts, and of what the model is to write after each of them.

    The conversation with the answer in it is tokenized as a whole, and what follows its prompt is taken, up to the
    first EOS. So it holds what the template puts around the text: a space, a channel's name, an empty block of
    thoughts, the end of the turn. Where the template writes no EOS, one is added.

    Raises:
        InputError: the conversation with an answer does not begin with its prompt, token by token.

    """
    asked = [task.messages(example.question) for example in examples]
    answers: list[Message] = [{"role": "assistant", "content": target_text(example, target)} for example in examples]
    prompts = encode(model.tokenizer, asked)
    wholes = encode(model.tokenizer, [[*turns, answer] for turns, answer in zip(asked, answers, strict=True)])
    return prompts, [_following(model, prompt, whole) for prompt, whole in zip(prompts, wholes, strict=True)]


def _following(model: HybridCausalLM, prompt: list[int], whole: list[int]) -> list[int]:
    """Return what follows a prompt in the whole conversation, up to its first EOS."""
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    if same < len(prompt):
        ends, goes_on = (model.tokenizer.decode(ids[same : same + 8]) for ids in (prompt, whole))  # type: ignore[union-attr]
        raise InputError(
            "sft.target",
            f"the chat template of this model ends a prompt with {ends!r}, where the "
            f"conversation with the answer goes on with {goes_on!r}, so that what is to be "
            "learnt cannot follow the prompt",
            "let its generation prompt be what its assistant's turns begin with (chat_template.jinja)",
        )
    ids, ends_at = whole[len(prompt) :], model.eos_token_ids
    for place, token in enumerate(ids):
        if token in ends_at:
            return ids[: place + 1]
    own = model.tokenizer.eos_token_id  # type: ignore[union-attr]
    return ids + ([own] if own in ends_at else ends_at[:1])


write_down = teacher_forced_rollout  # its name in 0.1
