"""How far numbers measured on a few problems or seeds can be trusted: intervals, paired tests, pass@k.

Pure functions. Bootstraps draw from a fixed seed, so that the same values give the same interval.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Interval = tuple[float, float]
Values = Any  # what numpy makes an array of

DRAWS = 10_000  # resamples; a p-value cannot be below 1 / (DRAWS + 1)
ROUNDING = 1e-12  # of the largest value: what differs by less differs by rounding alone
BLOCK = 4_000_000  # counts of resampled values held at a time


class Difference(NamedTuple):
    """Mean of a minus mean of b, its 95 % interval, and the p-value of no difference."""

    difference: float
    interval: Interval
    p: float


def wilson(right: float, total: float, z: float = 1.96) -> Interval:
    """95 % interval of a proportion.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    share = right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def metric_interval(values: Sequence[float], z: float = 1.96) -> Interval:
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
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval over runs needs two of them, got {n}")
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def paired_t(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compare two methods on the same seeds: Student's paired t-test, two-sided, with `mean_interval` of a - b.

    Where all differences are equal, up to rounding (.3 - .2 is not .2 - .1 in floats), there is no spread to compare
    them with: the interval is a point, and p is the exact one of flipping their signs, 2^(1 - n); 1 where they are 0.

    Raises:
        ValueError: fewer than two pairs, or different numbers of values.

    """
    differences = [left - right for left, right in zip(a, b, strict=True)]
    low, high = mean_interval(differences)
    n, mean = len(differences), math.fsum(differences) / len(differences)
    rounding = ROUNDING * max(map(abs, [*a, *b]))
    if max(map(abs, differences)) <= rounding:
        return Difference(0.0, (0.0, 0.0), 1.0)
    if max(differences) - min(differences) <= rounding:
        return Difference(mean, (mean, mean), 2.0 ** (1 - n))
    t = abs(mean) / ((high - low) / 2) * t_quantile(n - 1)
    return Difference(mean, (low, high), _t_beyond(math.atan(t / math.sqrt(n - 1)), n - 1))


def t_quantile(freedom: int, coverage: float = 0.95) -> float:
    """Return t with P(|T| <= t) = `coverage` for Student's T of `freedom` degrees, to 1e-12.

    Bisection on the closed form of P: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(freedom)), in which P is monotone
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < coverage else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _t_within(angle: float, freedom: int) -> float:
    """Return P(|T| <= sqrt(freedom) tan(angle))."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * power / (power + 1)
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def _t_beyond(angle: float, freedom: int) -> float:
    """Return P(|T| > sqrt(freedom) tan(angle)), accurate where it is far below the rounding of 1.

    The series of `_t_within`, never broken off, adds up to 1: this is the sum of the terms that it leaves out.
    """
    within = _t_within(angle, freedom)
    if within < 0.5:  # many terms would be left
        return 1 - within
    odd = freedom % 2
    term, total, power = (math.cos(angle) if odd else 1.0), 0.0, 1 + odd
    while power < freedom or term > total * 1e-17:
        total += term if power > freedom else 0.0
        term *= math.cos(angle) ** 2 * power / (power + 1)
        power += 2
    return math.sin(angle) * total * (2 / math.pi if odd else 1.0)


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
    pairs = [(bool(left), bool(right)) for left, right in zip(a, b, strict=True)]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    n = only_a + only_b
    tail = ways = 1  # C(n, 0)
    for count in range(min(only_a, only_b)):
        ways = ways * (n - count) // (count + 1)
        tail += ways
    return min(2 * tail / (1 << n), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given (Holm, Scand. J. Stat. 6, 1979).

    The i-th smallest of m, from 0, times m - i; none smaller than the one before it, none above 1.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min((len(p_values) - rank) * p_values[place], 1.0))
        corrected[place] = largest
    return corrected


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
