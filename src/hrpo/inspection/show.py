"""`inspect(rollout)`, for notebooks."""

from collections.abc import Mapping, Sequence

from hrpo.chat import decode, id_lists
from hrpo.data import Rollout
from hrpo.inspection.page import Page, make_page
from hrpo.inspection.record import Judged, column_of, map_of
from hrpo.inspection.vocabulary import gates_of
from hrpo.latent import mode_of
from hrpo.model import HybridCausalLM
from hrpo.rewards import score
from hrpo.tasks import Example, Task
from hrpo.tasks.base import RewardContext


def inspect(
    rollout: Rollout | Mapping[str, Rollout],
    model: HybridCausalLM | None = None,
    *,
    task: Task | None = None,
    examples: Sequence[Example] = (),
) -> Page:
    """Return a page with every token of a rollout; it shows itself in a notebook, and `save(path)` writes it.

    Args:
        rollout: what to look at, or several by name, on the same prompts, to see side by side.
        model: that made it: it knows the tokens' texts, and what its gate does with each of them. Without one, tokens
            are shown as ids.
        task: how completions are judged.
        examples: the problem of each prompt, B of them; with a task.

    Raises:
        ValueError: rollouts of different prompts, or as many examples as there are no prompts.

    """
    rollouts = dict(rollout) if isinstance(rollout, Mapping) else {"rollout": rollout}
    shapes = {(len(one.prompt_ids), one.group_size) for one in rollouts.values()}
    if len(shapes) != 1:
        raise ValueError("rollout: side by side, all need the same prompts and the same group_size")
    ((B, G),) = shapes
    if task is not None and len(examples) != B:
        raise ValueError(f"examples: {B} prompts need as many, got {len(examples)}")
    gated = model is not None and mode_of(model.settings.latent_mode).gated
    columns = []
    for place, (label, one) in enumerate(rollouts.items()):
        judged = None
        if task is not None and model is not None:
            judged = judge_all(task, [example for example in examples for _ in range(G)], model, one)
        gates = map_of(*gates_of(model)) if model is not None and gated and place == 0 else None
        columns.append(column_of(label, one, model, judged, gates, ""))
    problems = problems_of(examples) if task is not None else _prompts(next(iter(rollouts.values())), model)
    return make_page(task.name if task is not None else "", problems, G, columns)


def judge_all(task: Task, examples: Sequence[Example], model: HybridCausalLM, rollout: Rollout) -> Judged:
    """Return verdicts and rewards of N completions, each with its problem."""
    completions, context = decode(model.tokenizer, rollout), RewardContext(id_lists(rollout), model.settings.step)
    verdicts, _ = task.assess(completions, examples, context)
    rewards, _ = score(task, examples, completions, context)
    return Judged(verdicts, rewards.tolist())


def problems_of(examples: Sequence[Example]) -> list[dict[str, str | list[str]]]:
    """Return what the page says of problems."""
    return [{"question": example.question, "gold": example.gold} for example in examples]


def _prompts(rollout: Rollout, model: HybridCausalLM | None) -> list[dict[str, str | list[str]]]:
    """Return the prompts as questions, with no answer to them."""
    if model is None or model.tokenizer is None:
        return [{"question": "", "gold": ""} for _ in rollout.prompt_ids]
    rows = zip(rollout.prompt_ids, rollout.prompt_mask.bool(), strict=True)
    texts = model.tokenizer.decode([ids[real].tolist() for ids, real in rows])
    return [{"question": text, "gold": ""} for text in texts]
