"""What a page holds of a rollout: of each completion a summary, and a record of its tokens that is read when shown.

Numbers are whole: ratios and probabilities in 1/10,000, entropies in 1/1,000, so that they are short as JSON.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrpo.chat import decode
from hrpo.common.statistics import wilson
from hrpo.data import Rollout
from hrpo.delimiter import delimiter_automaton
from hrpo.evaluation.text_quality import is_mixed, scripts_of
from hrpo.inspection.tokens import Piece, groups, token_pieces
from hrpo.model import HybridCausalLM
from hrpo.tasks.judge import DELIMITER, Verdict

SHOWN = 12  # candidates of a token at most
LEAST = 0.0005  # probability of a candidate that is shown
PARTS, ENTROPY_PARTS, MAP_PARTS = 10_000, 1_000, 100_000

Json = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What a task makes of N completions."""

    verdicts: Sequence[Verdict]
    rewards: Sequence[float]


@dataclass(frozen=True)
class Column:
    """A rollout on the page.

    about: what is said of it above its completions.
    summaries: of each completion, N.
    records: of each completion's tokens, N.
    tokens: the vocabulary, None without a tokenizer.
    gates: means of a and i by token id, where they were asked for.
    """

    about: Json
    summaries: list[Json]
    records: list[Json]
    tokens: Json | None
    gates: Json | None = None


def column_of(
    label: str, rollout: Rollout, model: HybridCausalLM | None, judged: Judged | None, gates: Json | None, said: str
) -> Column:
    """Return what a page holds of a rollout.

    Args:
        label: what it is called.
        rollout: N completions.
        model: that made it; without one tokens are shown as ids.
        judged: verdicts and rewards, where there is a task.
        gates: from `map_of`, to be shown beside it.
        said: more about it, for people.

    """
    rollout = _on_cpu(rollout)
    tokenizer = None if model is None else model.tokenizer
    tokens = None if model is None or tokenizer is None else _vocabulary(tokenizer, model.vocab_size)
    pieces: list[Piece] = [] if tokens is None else tokens["pieces"]
    texts = [""] * len(rollout) if tokenizer is None else decode(tokenizer, rollout)
    cut = [False] * len(rollout) if model is None else rollout.truncated(model.eos_token_ids).tolist()
    summaries, records = [], _records(rollout, pieces, _ends(rollout, model))
    for n, (text, record) in enumerate(zip(texts, records, strict=True)):
        ratios = [ratio for ratio in record["ratio"] if ratio >= 0]
        scripts = scripts_of(text)
        summary = {
            "text": text,
            "length": len(record["ids"]),
            "cut": cut[n],
            "mixed": len(ratios),
            "ratio": round(sum(ratios) / max(len(ratios), 1)),
            "scripts": scripts,
            "manyScripts": is_mixed(scripts),
        }
        if judged is not None:
            verdict, reward = judged.verdicts[n], judged.rewards[n]
            summary |= {"strict": verdict.strict, "lenient": verdict.lenient}
            summary |= {} if math.isnan(reward) else {"reward": reward}
        summaries.append(summary)
    about = {
        "label": label,
        "latent": rollout.mode.source,
        "gated": rollout.mode.gated,
        "temperature": rollout.temperature,
        "topK": rollout.top_k,
        "said": said,
        **_totals(summaries),
    }
    return Column(about, summaries, records, tokens, gates)


def map_of(a: Sequence[float], i: Sequence[float]) -> Json:
    """Return the gates of a vocabulary: sqrt(1 - a^2), from which a is had more exactly than the reverse, and i."""
    ratio = (1 - torch.tensor(a, dtype=torch.float64) ** 2).sqrt()
    return {
        "ratio": (ratio * MAP_PARTS).round().int().tolist(),
        "input": (torch.tensor(i) * PARTS).round().int().tolist(),
    }


def _totals(summaries: Sequence[Json]) -> Json:
    """Return accuracies with 95 % intervals, and means, of all completions."""
    n = len(summaries)
    mixed = sum(row["mixed"] for row in summaries)
    totals: Json = {
        "length": sum(row["length"] for row in summaries) / n,
        "ratio": sum(row["ratio"] * row["mixed"] for row in summaries) / max(mixed, 1) / PARTS,
        "mixed": mixed,
        "cut": sum(row["cut"] for row in summaries),
    }
    for name in ("strict", "lenient"):
        if name in summaries[0]:
            right = sum(row[name] for row in summaries)
            totals[name] = [right / n, *wilson(right, n)]
    return totals


def _records(rollout: Rollout, pieces: Sequence[Piece], ends: Sequence[int]) -> list[Json]:
    """Return of each completion its tokens, and what was fed with each.

    ratio: the hidden ratio, -1 where the token was fed as it is or not at all.
    counts, candidates, weights: how many candidates each token has, and those of all tokens, one after another.
    end: the place of the token that completes the delimiter, -1 without one.
    """
    ratio = torch.where(rollout.hybrid_mask, _in(PARTS, (1 - rollout.gate_mean.double() ** 2).sqrt()), -1)  # (N, T)
    probability = _in(PARTS, rollout.sample_logprobs.exp())  # (N, T)
    entropy = _in(ENTROPY_PARTS, torch.special.entr(rollout.support_probs).sum(-1))  # (N, T)
    weights, candidates = rollout.support_probs[..., :SHOWN], rollout.support_ids[..., :SHOWN]  # (N, T, K)
    shown = weights >= LEAST
    records = []
    for n, length in enumerate(rollout.lengths.tolist()):
        here = shown[n, :length]
        ids = rollout.completion_ids[n, :length].tolist()
        records.append(
            {
                "ids": ids,
                "ratio": ratio[n, :length].tolist(),
                "probability": probability[n, :length].tolist(),
                "entropy": entropy[n, :length].tolist(),
                "counts": here.sum(-1).tolist(),
                "candidates": candidates[n, :length][here].tolist(),
                "weights": _in(PARTS, weights[n, :length][here]).tolist(),
                "groups": groups(ids, pieces) if pieces else [],
                "end": ends[n],
            }
        )
    return records


def _ends(rollout: Rollout, model: HybridCausalLM | None) -> list[int]:
    """Return where thinking ended: the place of the token that completes the delimiter, -1 where none does.

    Without a model it is the first token that was fed as it is, in modes that feed something else before.
    """
    fed = torch.arange(rollout.completion_ids.shape[1]) < rollout.lengths.unsqueeze(1) - 1
    after = fed & ~rollout.hybrid_mask & rollout.mode.thinks
    if model is not None and model.tokenizer is not None:
        automaton = delimiter_automaton(DELIMITER, model.tokenizer, model.vocab_size)
        state = automaton.start(len(rollout))
        states = []
        for token in rollout.completion_ids.unbind(1):
            state = automaton.advance(state, token)
            states.append(~automaton.thinking(state))
        after = torch.stack(states, dim=1) & rollout.completion_mask.bool()
    return torch.where(after.any(1), after.int().argmax(1), -1).tolist()


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any, vocab_size: int) -> Json:
    return {"pieces": token_pieces(tokenizer, vocab_size), "special": sorted(tokenizer.all_special_ids)}


def _in(parts: int, values: Tensor) -> Tensor:
    return (values * parts).round().int()


def _on_cpu(rollout: Rollout) -> Rollout:
    moved: dict[str, Any] = {name: value.cpu() for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    return dataclasses.replace(rollout, **moved)
