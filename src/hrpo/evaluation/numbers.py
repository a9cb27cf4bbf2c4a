"""What the answers amount to: numbers with intervals, and paired tests between any two models on the same problems."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hrpo.common.statistics import clustered_bootstrap, holm, mcnemar, paired_bootstrap, pass_at_k
from hrpo.evaluate import Answer, summarize
from hrpo.evaluation.text_quality import writing_of
from hrpo.reports.comparisons import ModelDifference
from hrpo.reports.results import DecodeMode

GREEDY, SAMPLED = DecodeMode
Answers = Mapping[str, Sequence[Answer]]  # by `DecodeMode`; "sampled" where there are samples


def numbers_of(answers: Answers, samples: int) -> dict[str, Any]:
    """Return a model's numbers on a task, by how it decoded.

    Args:
        answers: a problem's samples side by side.
        samples: of each problem, k.

    """
    numbers = {GREEDY.value: summarize(answers[GREEDY])}
    if samples:
        numbers[SAMPLED.value] = _of_samples(answers[SAMPLED], samples)
    for mode, part in numbers.items():
        part["writing"] = writing_of([answer.completion for answer in answers[mode]])
    return numbers


def _of_samples(answers: Sequence[Answer], k: int) -> dict[str, Any]:
    """Return the numbers of `summarize` over all samples, their intervals over problems, and pass@1, 2, 4 ... k."""
    numbers = summarize(answers)
    right = _by_problem([answer.strict for answer in answers], k)  # (Q, k)
    if k > 1:
        numbers["accuracy_interval"] = clustered_bootstrap(right)
        lenient = _by_problem([answer.lenient for answer in answers], k)
        numbers["lenient_accuracy_interval"] = clustered_bootstrap(lenient)
        if "metric" in numbers:
            metrics = _by_problem([math.nan if answer.metric is None else answer.metric for answer in answers], k)
            known = metrics[~np.isnan(metrics).all(axis=1)]  # the problems of which the metric has something to say
            numbers["metric_interval"] = clustered_bootstrap(np.nanmean(known, axis=1, keepdims=True))
    numbers |= {"problems": len(right), "samples": k, "pass_at": {}, "pass_at_interval": {}}
    for tries in sorted({k, *(2**power for power in range(k.bit_length()))}):
        chances = [[pass_at_k(k, int(count), tries)] for count in right.sum(axis=1)]  # (Q, 1)
        numbers["pass_at"][str(tries)] = float(np.mean(chances))
        numbers["pass_at_interval"][str(tries)] = clustered_bootstrap(chances)
    return numbers


def comparisons_of(answers: Mapping[str, Mapping[str, Answers]], samples: int) -> list[dict[str, Any]]:
    """Compare any two models on each task, in strict accuracy: greedy by McNemar's test, samples by a bootstrap.

    Args:
        answers: by task, then by model; the same problems in the same order.
        samples: of each problem, k.

    Returns:
        A row for each comparison: difference of the first minus the second, its 95 % interval, p, and p corrected
        for the number of all the rows.

    """
    rows = [
        _difference(task, mode, (first, second), models, samples)
        for task, models in answers.items()
        for first, second in itertools.combinations(models, 2)
        for mode in ((GREEDY, SAMPLED) if samples else (GREEDY,))
    ]
    corrected = holm([row.p for row in rows])
    return [dataclasses.asdict(dataclasses.replace(row, p_holm=p)) for row, p in zip(rows, corrected, strict=True)]


def _difference(
    task: str, mode: DecodeMode, names: tuple[str, str], models: Mapping[str, Answers], samples: int
) -> ModelDifference:
    """Return how two models differ on a task, p not corrected yet."""
    k = samples if mode is SAMPLED else 1
    first, second = (_by_problem([answer.strict for answer in models[name][mode]], k) for name in names)  # (Q, k)
    found = paired_bootstrap(first.mean(axis=1), second.mean(axis=1))
    p = mcnemar(first[:, 0], second[:, 0]) if mode is GREEDY else found.p
    return ModelDifference(
        task=task,
        how=mode.value,
        first=names[0],
        second=names[1],
        problems=len(first),
        difference=found.difference,
        interval=found.interval,
        test="mcnemar" if mode is GREEDY else "paired bootstrap",
        p=p,
        p_holm=p,
    )


def _by_problem(values: Sequence[float], k: int) -> Any:
    return np.asarray(values, dtype=np.float64).reshape(-1, k)
