"""Supervised fine-tuning on written solutions: a warm start, and the paper's SFT baseline."""

from collections.abc import Sequence

import torch

from hrpo.config import Target
from hrpo.decoder import left_pad
from hrpo.errors import InputError
from hrpo.model import HybridCausalLM
from hrpo.prompts import encode
from hrpo.rollout import Rollout
from hrpo.tasks import Example, Task
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
        raise InputError("sft.target: this task has problems without a written solution; set sft.target to answer")
    return example.solution if DELIMITER in example.solution else f"{example.solution}\n{answer}"


def write_down(model: HybridCausalLM, task: Task, examples: Sequence[Example], target: Target) -> Rollout:
    """Return the written solutions as completions of their problems, EOS at the end, fed as plain tokens: N rows."""
    prompts = encode(model.tokenizer, [task.messages(example.question) for example in examples])
    eos = model.eos_token_ids[:1]
    texts = [target_text(example, target) for example in examples]
    rows = [model.tokenizer.encode(text, add_special_tokens=False) + eos for text in texts]  # type: ignore[union-attr]
    pad = eos[0] if eos else 0
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
