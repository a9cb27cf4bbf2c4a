"""Intervals and tests against published numbers, whole enumerations and simulated experiments."""

import itertools
import math

import numpy as np
import pytest

from hrpo.common.statistics import (
    clustered_bootstrap,
    holm,
    mcnemar,
    mean_interval,
    metric_interval,
    paired_bootstrap,
    paired_t,
    pass_at_k,
    t_quantile,
    wilson,
)

# ---- Wilson -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_in_newcombe_1998(right, total, low, high):
    """Statistics in Medicine 17, table I, method 3."""
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_metric_interval():
    assert metric_interval([1, 0, 0.5, 0.5]) == wilson(2, 4)
    assert metric_interval([-1, 3]) == pytest.approx((1 - 1.96 * 2, 1 + 1.96 * 2))  # s = 2 sqrt 2, over sqrt 2


# ---- Student's t ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "t"),
    [
        (1, 12.7062047),
        (2, 4.3026527),
        (3, 3.1824463),
        (4, 2.7764451),
        (10, 2.2281389),
        (29, 2.0452296),
        (500, 1.9647198),
    ],
)
def test_t_as_in_tables(freedom, t):
    assert t_quantile(freedom) == pytest.approx(t, abs=1e-7)


def test_t_of_other_coverage():
    assert t_quantile(1, 0.5) == pytest.approx(1)  # the Cauchy distribution's quartiles
    assert t_quantile(5, 0.99) == pytest.approx(4.0321430, abs=1e-7)


def test_mean_interval():
    half = 4.3026527 / math.sqrt(3)
    assert mean_interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half), abs=1e-7)
    assert mean_interval([5, 5]) == (5, 5)
    with pytest.raises(ValueError, match="needs two"):
        mean_interval([1.0])


def test_mean_interval_covers():
    rng = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (mean_interval(rng.normal(size=3)) for _ in range(4000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)  # three standard errors


# ---- bootstrap over questions -----------------------------------------------------------------------------


def test_bootstrap_is_the_whole_enumeration():
    # the mean of 4 draws of (0, 0, 0, 1) is binomial(4, 1/4) / 4: P(<= 0) = .316, P(>= 3/4) = .051, P(1) = .004
    assert clustered_bootstrap([[0], [0], [0], [1]]) == (0, 0.75)


def test_answers_to_one_question_are_one_cluster():
    rng = np.random.default_rng(2)
    once = rng.integers(0, 2, (100, 1)).astype(float)
    assert clustered_bootstrap(once.repeat(8, axis=1)) == clustered_bootstrap(once)
    low, high = clustered_bootstrap(once)
    half = 1.96 * once.std() / 10
    assert (low, high) == pytest.approx((once.mean() - half, once.mean() + half), abs=0.01)


def test_without_variation_it_is_wilsons():
    assert clustered_bootstrap(np.zeros((20, 4))) == wilson(0, 20)
    assert clustered_bootstrap(np.ones((20, 4))) == wilson(20, 20)
    assert clustered_bootstrap([[0, 1], [1, 0]]) == wilson(1, 2)


@pytest.mark.parametrize(
    ("questions", "k", "mean", "spread"), [(30, 16, 0.03, 0.1), (100, 4, 0.03, 0.1), (100, 16, 0.01, 0.05)]
)
@pytest.mark.parametrize("flipped", [False, True])
def test_clustered_interval_covers_where_successes_or_failures_are_rare(questions, k, mean, spread, flipped):
    """The bootstrap's percentiles alone cover the truth in 74 to 90 % of these experiments."""
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(400):
        difficulty = rng.beta(spread, spread * (1 / mean - 1), (questions, 1))
        scores = (rng.random((questions, k)) < difficulty).astype(float)
        low, high = clustered_bootstrap(1 - scores if flipped else scores, draws=500)
        covered.append(low <= (1 - mean if flipped else mean) <= high)
    assert np.mean(covered) > 0.93


def test_a_rare_success_may_be_far_more_frequent():
    """One success in 400: no wider than Wilson's over 100 questions, wider than Wilson's over 400 answers."""
    scores = np.zeros((100, 4))
    scores[0, 0] = 1
    low, high = clustered_bootstrap(scores)
    assert low == 0
    assert wilson(1, 400)[1] < high <= wilson(0.25, 100)[1]


def test_rounding_is_no_variation():
    values = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]  # means .2 and .20000000000000004
    assert clustered_bootstrap(values) == pytest.approx(wilson(0.4, 2))
    assert metric_interval([1 + 1e-16, 1.0000000000000002]) == pytest.approx(wilson(2, 2))


def test_same_values_same_interval():
    values = np.random.default_rng(3).random((500, 3))  # all different: more than one block of resamples
    assert clustered_bootstrap(values) == clustered_bootstrap(values)
    assert clustered_bootstrap(values) != clustered_bootstrap(values, seed=1)


@pytest.mark.parametrize("values", [[], [1, 0], [[]], [[[1]]]])
def test_shape_is_checked(values):
    with pytest.raises(ValueError, match="shape"):
        clustered_bootstrap(values)


def experiments(count, questions, k, seed):
    """Yield the scores of a model on questions of very different difficulty: the true mean is 1/2."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        difficulty = rng.beta(0.5, 0.5, (questions, 1))
        yield (rng.random((questions, k)) < difficulty).astype(float)


def test_clustered_interval_covers_and_a_naive_one_does_not():
    clustered, naive = [], []
    for scores in experiments(600, 60, 8, seed=4):
        low, high = clustered_bootstrap(scores, draws=1000)
        clustered.append(low <= 0.5 <= high)
        low, high = wilson(scores.sum(), scores.size)
        naive.append(low <= 0.5 <= high)
    assert 0.925 < np.mean(clustered) < 0.97
    assert np.mean(naive) < 0.7


# ---- pairs ------------------------------------------------------------------------------------------------


def test_paired_bootstrap_is_the_whole_enumeration():
    a, b = np.array([1, 1, 0.5, 1, 0.25]), np.array([0, 0.5, 1, 0, 0.5])
    d = a - b  # 1, .5, -.5, 1, -.25
    means = np.array([np.mean(drawn) for drawn in itertools.product(d, repeat=5)])
    p = np.mean(np.abs(means - d.mean()) >= d.mean() - 1e-12)
    found = paired_bootstrap(a, b, draws=100_000)
    assert found.difference == pytest.approx(0.35)
    assert found.p == pytest.approx(p, abs=0.005)
    assert found.interval == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.011)
    other = paired_bootstrap(b, a, draws=100_000)
    assert other.difference == -found.difference
    assert other.p == pytest.approx(found.p, abs=0.005)


def test_a_handful_of_questions_proves_nothing():
    assert paired_bootstrap([1, 1, 1], [0, 0, 0]).p == 0.25
    assert paired_bootstrap([1.0], [0.0]).p == 1
    assert paired_bootstrap(np.ones(100), np.zeros(100)).p == 1 / 10_001


def test_without_variation_the_difference_may_still_be_another():
    _, unseen = wilson(0, 2)
    assert paired_bootstrap([0.3, 0.1], [0.3, 0.1]) == (0, (-unseen, unseen), 1)
    difference, (low, high), _ = paired_bootstrap([1, 1], [0, 0])
    assert (difference, high) == (1, 1)
    assert low == 1 - 2 * unseen


def test_paired_bootstrap_takes_rounding_for_no_difference():
    third = 1 / 3
    one, other = [2 * third, third, 1 - third, third] * 5, [third, 0, third, 0] * 5  # differences by two roundings
    difference, (low, high), p = paired_bootstrap(one, other)
    assert difference == pytest.approx(third)
    assert high - low == pytest.approx(2 * wilson(0, 20)[1])
    assert p == pytest.approx(1 / 10_001)
    assert paired_bootstrap([0.1 + 0.2] * 20, [0.3] * 20) == paired_bootstrap([0.3] * 20, [0.3] * 20)
    assert (
        paired_bootstrap([third, 0, third, 0], [0, third, 0, 1 - 2 * third]).p == 1
    )  # they cancel, but for a rounding


def test_paired_bootstrap_needs_the_same_questions():
    with pytest.raises(ValueError, match="same questions, got 3 and 2"):
        paired_bootstrap([1, 1, 1], [0, 0])


def test_paired_bootstrap_errs_as_often_as_it_says():
    pairs = zip(experiments(600, 60, 4, seed=5), experiments(600, 60, 4, seed=6), strict=True)
    found = [paired_bootstrap(a.mean(1), b.mean(1), draws=1000) for a, b in pairs]
    assert 0.03 < np.mean([result.p < 0.05 for result in found]) < 0.07
    assert 0.93 < np.mean([low <= 0 <= high for _, (low, high), _ in found]) < 0.97


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (1, 9, 2 * (1 + 10) / 1024),
        (9, 1, 2 * (1 + 10) / 1024),
        (0, 5, 2 / 32),
        (5, 5, 1),
        (0, 0, 1),
        (0, 1, 1),
        (86, 150, 3.716e-05),  # approval of a prime minister, Agresti 1990; p as R's exact2x2 prints it
    ],
)
def test_mcnemar(only_a, only_b, p):
    a = [True] * only_a + [False] * only_b + [True, False] * 40
    b = [False] * only_a + [True] * only_b + [True, False] * 40
    assert mcnemar(a, b) == pytest.approx(p, rel=1e-3)


def test_mcnemar_of_thousands_of_questions():
    assert mcnemar([True] * 12_000, [False] * 12_000) == 0  # 2^-11999 is below what a float holds
    assert mcnemar([True, False] * 6000, [False, True] * 6000) == 1
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, True], [True])


# ---- several comparisons, several answers -----------------------------------------------------------------


def test_holm():
    """Step by step: .005 * 4, .01 * 3, .03 * 2, and .04 * 1 raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for n, c, k in [(1, 0, 1), (5, 2, 1), (5, 2, 3), (5, 2, 4), (6, 1, 3), (6, 6, 2), (6, 0, 6)]:
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_as_the_paper_computes_it():
    """Chen et al. 2021, figure 3: 1 - prod(1 - k / arange(n - c + 1, n + 1))."""
    for n, c, k in [(200, 7, 100), (200, 1, 10), (200, 150, 100)]:
        expected = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
        assert pass_at_k(n, c, k) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_of_too_few_answers(n, c, k):
    with pytest.raises(ValueError, match="needs"):
        pass_at_k(n, c, k)


def test_paired_t():
    difference, interval, p = paired_t([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    assert difference == pytest.approx(0.2)
    assert interval == pytest.approx(mean_interval([0.1, 0.2, 0.3]))
    assert p == pytest.approx(1 - math.sqrt(12 / 14))  # t = 2 sqrt(3), P = t / sqrt(2 + t^2)
    assert paired_t([0.4, 0.5, 0.6], [0.5, 0.7, 0.9])[::2] == pytest.approx((-0.2, p))
    assert paired_t([1.0, 2.0], [1.0, 2.0]) == (0, (0, 0), 1)
    assert paired_t([2.0, 3.0], [1.0, 2.0]) == (1, (1, 1), 0.5)  # two seeds that agree are no certainty
    assert paired_t([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == (1, (1, 1), 0.25)
    assert paired_t([50.2, 50.3, 50.0, 50.1, 50.1, 50.0, 50.3], [0.0] * 7).p >= 0  # whatever is rounded
    for n in (2, 3, 8):  # at the edge of its interval p is .05
        values = [float(i) for i in range(n)]
        low, _ = mean_interval(values)
        assert paired_t(values, [low] * n).p == pytest.approx(0.05)
    for one, other in (([1.0], [0.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match=r"two of them|shorter"):
            paired_t(one, other)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("problems", [3, 100, 500, 1319])
def test_the_same_count_more_in_every_seed(seeds, problems):
    """Accuracies are counts over problems; their differences are equal, though seldom as floats."""
    rng = np.random.default_rng(problems)
    for more in range(1, min(problems, 40)):
        right = rng.integers(0, problems - more + 1, seeds)
        difference, (low, high), p = paired_t((right + more) / problems, right / problems)
        assert difference == pytest.approx(more / problems)
        assert low == high == difference
        assert p == 2.0 ** (1 - seeds)
    assert paired_t([0.1 + 0.2] * seeds, [0.3] * seeds) == (0, (0, 0), 1)


def test_one_count_is_no_rounding():
    found = paired_t([0.5, 0.5 + 1e-6, 0.5], [0.25, 0.25, 0.25])
    assert found.interval[0] < 0.25 < found.interval[1]
    assert found.p < 1e-9


@pytest.mark.parametrize(
    ("t", "seeds", "p"),
    [
        (1e4, 2, 6.366197702e-05),
        (1e6, 3, 9.99999999998e-13),
        (1e4, 8, 2.641040778e-26),
        (3, 5, 0.03994196807),
        (0.01, 4, 0.9926491114),
    ],
)
def test_p_of_students_t(t, seeds, p):
    """As R's pt has them; 1 minus what lies within would have no digit left."""
    spread = np.sqrt(seeds) * np.array([1, -1] + [0] * (seeds - 2)) / math.sqrt(2 / (seeds - 1))
    assert paired_t(spread + t, np.zeros(seeds)).p == pytest.approx(p, rel=1e-6, abs=0)
