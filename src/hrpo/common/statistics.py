"""How far numbers measured on a few problems or seeds can be trusted: intervals, paired tests, pass@k.

Pure functions. The textbook ones are SciPy's and statsmodels'; what is written here are the cases in which these know
no answer (no spread, nothing right), pass@k, and the bootstraps. Bootstraps draw from a fixed seed, so that the same
values give the same interval. They are our own because scipy.stats.bootstrap draws every question by itself, which
takes five to forty times as long as drawing how often each distinct score appears, and has no p-value.

SciPy and statsmodels take a second to import, so each function imports what it needs.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Interval = tuple[float, float]
Values = Any  # what numpy makes an array of

DRAWS = 10_000  # resamples; a p-value cannot be below 1 / (DRAWS + 1)
ROUNDING = 1e-12  # of the largest value: what differs by less differs by rounding alone
Z = 1.96  # the normal quantile of 95 %, to the digits in which intervals are published
BLOCK = 4_000_000  # counts of resampled values held at a time


class Difference(NamedTuple):
    """Mean of a minus mean of b, its 95 % interval, and the p-value of no difference."""

    difference: float
    interval: Interval
    p: float


def wilson(right: float, total: float, z: float = Z) -> Interval:
    """95 % interval of a proportion, which always holds the proportion itself.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        right: successes; with an effective number of trials no whole number.
        total: trials.
        z: the normal quantile; another one stands for another coverage.

    """
    from scipy.special import ndtr
    from statsmodels.stats.proportion import proportion_confint

    share = min(right / total, 1.0)  # sums of shares may exceed their number by a rounding
    low, high = proportion_confint(share * total, total, alpha=2 * ndtr(-z), method="wilson")
    return max(min(float(low), share), 0.0), min(max(float(high), share), 1.0)


def metric_interval(values: Sequence[float], z: float = Z) -> Interval:
    """95 % interval of the mean of a task's own metric over problems.

    In 0..1 it is Wilson's, which shares of right answers have: no values there have a larger variance for their mean.
    Else it is the normal one, which has no width where all values are the same: nothing tells how others would differ.
    """
    mean = sum(values) / len(values)
    if min(values) >= -ROUNDING and max(values) <= 1 + ROUNDING:
        return wilson(sum(values), len(values), z)
    half = z * math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values))
    return mean - half, mean + half


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of a mean over a few independent runs: Student's t (Biometrika 6, 1908).

    mean -+ t(.975, n - 1) s / sqrt(n), s the unbiased standard deviation.

    Raises:
        ValueError: fewer than two values; one run says nothing about how much runs differ.

    """
    from scipy import stats

    n = len(values)
    if n < 2:
        raise ValueError(f"an interval over runs needs two of them, got {n}")
    mean, half = math.fsum(values) / n, t_quantile(n - 1) * float(stats.sem(values))
    return mean - half, mean + half


def paired_t(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compare two methods on the same seeds: Student's paired t-test, two-sided, with `mean_interval` of a - b.

    Where all differences are equal, up to rounding (.3 - .2 is not .2 - .1 in floats), there is no spread to compare
    them with: the interval is a point, and p is the exact one of flipping their signs, 2^(1 - n); 1 where they are 0.

    Raises:
        ValueError: fewer than two pairs, or different numbers of values.

    """
    from scipy import stats

    differences = [left - right for left, right in zip(a, b, strict=True)]
    interval = mean_interval(differences)
    n, mean = len(differences), math.fsum(differences) / len(differences)
    rounding = ROUNDING * max(map(abs, [*a, *b]))
    if max(map(abs, differences)) <= rounding:
        return Difference(0.0, (0.0, 0.0), 1.0)
    if max(differences) - min(differences) <= rounding:
        return Difference(mean, (mean, mean), 2.0 ** (1 - n))
    return Difference(mean, interval, float(stats.ttest_rel(a, b).pvalue))


def t_quantile(freedom: int, coverage: float = 0.95) -> float:
    """Return t with P(|T| <= t) = `coverage` for Student's T of `freedom` degrees."""
    from scipy import stats

    return float(stats.t.isf((1 - coverage) / 2, freedom))


def clustered_bootstrap(values: Values, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """95 % interval of a mean over questions that were answered k times each: avg@k.

    The k answers to a question are not independent, so whole questions are drawn again, each with all its answers;
    the interval is from the 2.5th to the 97.5th percentile of the means (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13; clusters: Cameron, Gelbach & Miller, Rev. Econ. Stat. 90, 2008). Where few questions
    have a success, or few a failure, resamples vary too little, so with values in 0..1 each end is the farther one of
    the bootstrap's and of `_clustered_wilson`'s. Where every question has the same mean in 0..1, a bootstrap sees no
    variation at all; the interval is then Wilson's over the questions.

    Args:
        values: (Q, k), what each answer to each question scored.
        draws: how often the questions are drawn again.
        seed: of the draws.

    Raises:
        ValueError: not of that shape, or empty.

    """
    means = _array(values, 2).mean(axis=1)  # (Q,)
    low, high = _percentiles(_resampled_means(means, draws, seed))
    if means.min() < -ROUNDING or means.max() > 1 + ROUNDING:
        return low, high
    if np.ptp(means) <= ROUNDING:
        return wilson(float(means.sum()), len(means))
    other_low, other_high = _clustered_wilson(means)
    return min(low, other_low), max(high, other_high)


def _clustered_wilson(means: Any) -> Interval:
    """95 % interval of the mean of (Q,) values in 0..1: Wilson's with an effective number of answers.

    That number is share (1 - share) / variance of the mean, as in surveys (Kott & Carr, J. Off. Stat. 13, 1997;
    Franco et al., J. Surv. Stat. Methodol. 7, 2019). What is known of the variance is known from the questions with a
    success, or with a failure if these are fewer, so z is Student's t with as many degrees of freedom. It is never
    wider than Wilson's over the questions, as no values in 0..1 have a larger variance than shares of right answers.
    """
    share, n = float(means.mean()), len(means)
    effective = share * (1 - share) / (float(means.var(ddof=1)) / n)
    freedom = min(int((means > ROUNDING).sum()), int((means < 1 - ROUNDING).sum()))
    (low, high), (least, most) = wilson(share * effective, effective, t_quantile(freedom)), wilson(share * n, n)
    return max(low, least), min(high, most)


def paired_bootstrap(a: Values, b: Values, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Compare two models on the same questions.

    The differences d = a - b are drawn again, question by question. The interval is from the 2.5th to the 97.5th
    percentile of their means. For p they are centred, which makes no difference true, and p is the share of resampled
    means at least as far from 0 as the one that was seen, that one counted in (Efron & Tibshirani 1993, chapter 16;
    Davison & Hinkley, Bootstrap Methods and their Application, 1997, 4.2). With m questions that differ at all, p is
    at least 2^(1 - m), below which no test that flips signs can go: a bootstrap of a handful of questions is too sure.
    Where all differences are the same, a bootstrap sees no variation; the interval is then as wide as it gets where
    the share of other questions, unseen in Q, is Wilson's upper limit, and all of them go to one side.

    Args:
        a: (Q,), what the first model scored on each question, in 0..1; for k answers their mean.
        b: (Q,), the second model, in the same order.
        draws: how often the questions are drawn again.
        seed: of the draws.

    Raises:
        ValueError: not of that shape, empty, or of different lengths.

    """
    first, second = _array(a, 1), _array(b, 1)
    if len(first) != len(second):
        raise ValueError(f"a pair needs the same questions, got {len(first)} and {len(second)}")
    d = first - second
    d[np.abs(d) <= ROUNDING] = 0
    mean = float(d.mean())
    means = _resampled_means(d, draws, seed)
    farther = int((np.abs(means - mean) >= abs(mean) - ROUNDING).sum())
    differing = int((d != 0).sum())
    p = max((farther + 1) / (draws + 1), 2.0 ** (1 - differing))
    interval = _percentiles(means)
    if np.ptp(d) <= ROUNDING:
        _, unseen = wilson(0, len(d))
        interval = mean - unseen * (1 + mean), mean + unseen * (1 - mean)
    return Difference(mean, interval, min(p, 1.0))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided p-value of no difference between two models that answer each question right or wrong; exact.

    Of the questions on which they differ, each model is right on half, so the smaller count is binomial(n, 1/2)
    (McNemar, Psychometrika 12, 1947; exact form: Fagerland et al., BMC Med. Res. Methodol. 13, 2013).

    Raises:
        ValueError: different numbers of questions.

    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    pairs = [(bool(left), bool(right)) for left, right in zip(a, b, strict=True)]
    table = [[pairs.count((left, right)) for right in (True, False)] for left in (True, False)]
    return float(test(table, exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given (Holm, Scand. J. Stat. 6, 1979).

    The i-th smallest of m, from 0, times m - i; none smaller than the one before it, none above 1.
    """
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k answers is right, from n answers of which c are: unbiased.

    1 - C(n - c, k) / C(n, k) (Chen et al., arXiv:2107.03374, equation 1).

    Raises:
        ValueError: not 0 <= c <= n and 1 <= k <= n.

    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right in {n}: needs 0 <= c <= n and 1 <= k <= n")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _array(values: Values, dimensions: int) -> Any:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(f"needs {dimensions} dimensions and at least one value, got shape {array.shape}")
    return array


def _resampled_means(values: Any, draws: int, seed: int) -> Any:
    """Return the mean of each of `draws` resamples of (Q,) values: (draws,).

    How often each distinct value is drawn is multinomial, and k answers a question give at most k + 1 of them.
    """
    rng, n = np.random.default_rng(seed), len(values)
    levels, counts = np.unique(values, return_counts=True)
    at_a_time = max(1, BLOCK // len(levels))
    blocks = [min(at_a_time, draws - first) for first in range(0, draws, at_a_time)]
    return np.concatenate([rng.multinomial(n, counts / n, rows) @ levels / n for rows in blocks])


def _percentiles(means: Any) -> Interval:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
