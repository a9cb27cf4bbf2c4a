"""What the answers amount to: numbers with intervals, and paired tests between any two models on the same problems."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hrpo.common.statistics import clustered_bootstrap, holm, mcnemar, paired_bootstrap, pass_at_k
from hrpo.evaluate import Answer, summarize
from hrpo.evaluation.text_quality import writing_of

HOWS = ("greedy", "sampled")
Answers = Mapping[str, Sequence[Answer]]  # by "greedy" and, where there are samples, "sampled"


def numbers_of(answers: Answers, samples: int) -> dict[str, Any]:
    """Return a model's numbers on a task, by how it decoded.

    Args:
        answers: a problem's samples side by side.
        samples: of each problem, k.

    """
    numbers = {"greedy": summarize(answers["greedy"])}
    if samples:
        numbers["sampled"] = _of_samples(answers["sampled"], samples)
    for how, part in numbers.items():
        part["writing"] = writing_of([answer.completion for answer in answers[how]])
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
    rows = list[dict[str, Any]]()
    for task, models in answers.items():
        for first, second in itertools.combinations(models, 2):
            for how in HOWS[: 2 if samples else 1]:
                k = samples if how == "sampled" else 1
                a, b = (_by_problem([answer.strict for answer in models[name][how]], k) for name in (first, second))
                found = paired_bootstrap(a.mean(axis=1), b.mean(axis=1))
                rows.append(
                    {
                        "task": task,
                        "how": how,
                        "first": first,
                        "second": second,
                        "problems": len(a),
                        "difference": found.difference,
                        "interval": found.interval,
                        "test": "mcnemar" if how == "greedy" else "paired bootstrap",
                        "p": mcnemar(a[:, 0], b[:, 0]) if how == "greedy" else found.p,
                    }
                )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def _by_problem(values: Sequence[float], k: int) -> Any:
    return np.asarray(values, dtype=np.float64).reshape(-1, k)
