"""Ask a checkpoint something, and show what went into each of its inputs."""

import math
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator

from hrpo.chat import decode, encode
from hrpo.common.errors import InputError, model_named_by
from hrpo.data import Rollout
from hrpo.evaluate import check_finite
from hrpo.model import HybridCausalLM
from hrpo.models.context import context_text
from hrpo.rollout import generate
from hrpo.storage.run_dir import model_in
from hrpo.tasks.base import ask
from hrpo.training.length_filter import context_length

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
            "PROMPT",
            f"{context - room:g} tokens leave no room in the model's {context_text(model.bare_lm.config)}",
            "shorten it",
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
    check_finite(model, rollout)
    for row, text in enumerate(decode(model.tokenizer, rollout)):
        if trace:
            yield from trace_lines(model, rollout, row)
        yield text


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
