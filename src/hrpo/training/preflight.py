"""What a run will be like, measured on a few prompts before the hours are spent."""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch

from hrpo.advantages import distinct_share, signal_share
from hrpo.chat import decode, id_lists
from hrpo.common.console import clock, console, print_table
from hrpo.common.errors import InputError
from hrpo.common.memory import peak_memory, total_memory
from hrpo.config.schema import TrainConfig
from hrpo.tasks.judge import DELIMITER
from hrpo.training.advice import Signs, advice, memory_advice, told_out_of_memory
from hrpo.training.length_filter import show_dropped
from hrpo.training.run import Run

ADAM_BYTES = 8  # of state for each trained parameter, there from the first step on


@dataclass(frozen=True)
class Check:
    """What was measured.

    prompts, completions: how many.
    signs: shares in 0..1.
    length, longest: tokens of a completion.
    tokens_per_second: completion tokens, in rollouts.
    update_seconds: of one update, rollout included.
    run_seconds: estimate for all updates and both evaluations.
    peak_bytes: estimate of the run's peak memory.
    available_bytes: memory of the device.
    advice: what to change.
    """

    prompts: int
    completions: int
    signs: Signs
    length: float
    longest: int
    tokens_per_second: float
    update_seconds: float
    run_seconds: float
    peak_bytes: int
    available_bytes: int
    advice: list[str]


def check_run(config: TrainConfig) -> Check:
    """Check a run that has not begun; nothing is left on disk.

    Raises:
        InputError: a setting cannot be used.

    """
    if config.check.prompts == 0:
        raise InputError("check.prompts", "must be at least 1 to check anything, got 0")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(dataclasses.replace(config, output_dir=folder))
        show_dropped(run.trainer.task)
        with told_out_of_memory(config.model, config.gradient_checkpointing):
            return check(run)


def check(run: Run) -> Check:
    """Sample completions of the run's first problems, and go forward and backward on them; no weight changes.

    An update's rollout and gradients are timed on as many prompts as an update has, or on `check.prompts` where these
    are fewer, and taken to cost the same per prompt.
    """
    config, model, trainer = run.config, run.model, run.trainer
    B, G = config.rollout.prompts_per_step, config.rollout.group_size
    count = config.check.prompts
    examples = [example for step in range(-(-count // B)) for example in trainer.batch(step)][:count]
    warm = trainer.roll_out(examples[:1], key="warm", max_new_tokens=2)  # what is done once costs a run nothing
    trainer.gradients(warm, torch.ones(len(warm), device=model.device))
    start, held = time.perf_counter(), peak_memory(model.device)
    rollout = trainer.roll_out(examples, key="check")
    rollout_seconds = time.perf_counter() - start
    rollout_peak = peak_memory(model.device)
    completions = decode(model.tokenizer, rollout)
    rewards, _, _ = trainer.score(examples, completions, id_lists(rollout))  # (N,)

    share = min(B, count)  # prompts of an update that the gradients are taken of
    start = time.perf_counter()
    part = rollout.select(0, share * G)
    trainer.gradients(part, torch.linspace(-1, 1, share * G, device=model.device))
    trainer.forget_gradients()
    gradient_seconds = time.perf_counter() - start
    update_peak = peak_memory(model.device)

    lengths = rollout.lengths.float()
    signs = Signs(
        reward=rewards.nanmean().item(),
        signal=signal_share(rewards, G),
        format_rate=sum(text.count(DELIMITER) == 1 for text in completions) / len(completions),
        truncation_rate=rollout.truncated(model.eos_token_ids).float().mean().item(),
        distinct=distinct_share(rollout.completion_ids, G),
    )
    per_completion = rollout_seconds / len(rollout)
    update_seconds = B * G * per_completion + gradient_seconds * B / share
    answers = 4 * min(config.eval.problems, len(trainer.task.test))  # greedy and sampled, before and after
    micro_batch, tokens = trainer.token_budget(part), int(part.prompt_mask.sum() + part.completion_mask.sum())
    fuller = min(micro_batch, tokens * B / share) / min(micro_batch, tokens)  # what an update holds, over what was held
    grown = max((rollout_peak - held) * max(B / count, 1), (update_peak - held) * fuller)
    trained = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    peak = held + round(grown) + ADAM_BYTES * trained
    available = total_memory(model.device)
    return Check(
        prompts=count,
        completions=len(rollout),
        signs=signs,
        length=lengths.mean().item(),
        longest=int(lengths.max()),
        tokens_per_second=lengths.sum().item() / rollout_seconds,
        update_seconds=update_seconds,
        run_seconds=config.max_steps * update_seconds + answers * per_completion,
        peak_bytes=peak,
        available_bytes=available,
        advice=[
            *advice(signs, config.rollout, config.task, model.end_texts),
            *memory_advice(peak, available, config.model, config.gradient_checkpointing),
        ],
    )


def as_dict(result: Check) -> dict[str, Any]:
    """Return it ready for JSON, the signs beside the rest."""
    values = dataclasses.asdict(result)
    return {**values.pop("signs"), **values}


def rows(result: Check) -> list[list[str]]:
    """Return the rows of its table: what, value."""
    signs = result.signs
    return [
        ["completions with one ####", f"{signs.format_rate:.0%}"],
        ["mean reward", f"{signs.reward:.3f}"],
        ["groups with a signal", f"{signs.signal:.0%}"],
        ["different completions in a group", f"{signs.distinct:.0%}"],
        ["length (tokens): mean, longest", f"{result.length:.1f}, {result.longest}"],
        ["cut off at rollout.max_new_tokens", f"{signs.truncation_rate:.0%}"],
        ["completion tokens per second, rollout", f"{result.tokens_per_second:.0f}"],
        ["one update, estimated", f"{result.update_seconds:.1f} s"],
        ["the run, estimated", clock(result.run_seconds)],
        ["peak memory, estimated", f"{result.peak_bytes / 1e9:.2f} of {result.available_bytes / 1e9:.0f} GB"],
    ]


def show(result: Check) -> None:
    """Print the table and the advice."""
    title = f"check: {result.completions} completions of {result.prompts} training problems"
    print_table(title, ["", "measured"], rows(result))
    for tip in result.advice or ["nothing stands in the way"]:
        console.print(f"- {tip}", markup=False)
