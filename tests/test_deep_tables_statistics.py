"""Differences between methods, against scipy, hand-worked examples and the literature's."""

import math

import numpy as np
import pytest
from scipy import stats

from deep.tables.statistics import (
    Difference,
    critical_difference,
    friedman,
    holm,
    judge_gain,
    mean_ranks,
    paired_difference,
    welch_difference,
    wilcoxon,
)

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(3, 1, 20), RANDOM.normal(2.5, 1, 20)


def test_without_resampling_the_paired_difference_is_scipys_paired_t_test():
    found, truth = paired_difference(A, B), stats.ttest_rel(A, B)
    interval = truth.confidence_interval()
    assert found.p == pytest.approx(truth.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(A - B))


def test_corrected_resampled_t_by_hand():
    """Differences 1, 2, 3: s² = 1, J = 3, n_test/n_train = 1/6: half-width t · √(1/3 + 1/6)."""
    found = paired_difference(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), 1 / 6)
    half = 4.302652729911275 * math.sqrt(0.5)  # t of 2 degrees of freedom, tables
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-9)
    # t = 2/√0.5 = 2.828 with 2 degrees of freedom has p = 1 − t/√(2 + t²) = 0.1056.
    assert found.p == pytest.approx(1 - math.sqrt(8) / math.sqrt(10), rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]),
        ([2.5, 2.5, 2.5, 2.5], [1.0, 1.0, 1.0, 1.0]),
        ([5.0, 7.0, 3.0, 5.0], [10.0, 12.0, 8.0, 10.0]),
        # Equal but for rounding: of per cent, as the tables hold them.
        (100 * np.array([0.05, 0.07, 0.03, 0.05]), 100 * np.array([0.1, 0.12, 0.08, 0.1])),
    ],
)
def test_equal_differences_leave_no_interval(first, second):
    found = paired_difference(np.array(first), np.array(second), 0.25)
    assert found.mean == pytest.approx(first[0] - second[0])
    assert all(math.isnan(value) for value in (found.low, found.high, found.p))
    assert judge_gain(-0.1, found) == "undecided"


def test_one_repetition_has_no_interval():
    found = paired_difference(np.array([3.0]), np.array([1.0]))
    assert found.mean == 2
    assert math.isnan(found.low)
    assert math.isnan(found.p)


def test_the_correction_restores_coverage_where_splits_overlap():
    """Error estimates that share a component ρ of their variance: ρ = n_test/(n_test + n_train).

    The ordinary t interval then covers far less than 95 %, the corrected one close to it.
    """
    random, repetitions, ratio, trials = np.random.default_rng(1), 20, 1 / 3, 4000
    share = ratio / (1 + ratio)
    common = random.normal(0, math.sqrt(share), (trials, 1))
    d = common + random.normal(0, math.sqrt(1 - share), (trials, repetitions))
    zero = np.zeros(repetitions)

    def coverage(test_over_train):
        found = [paired_difference(row, zero, test_over_train) for row in d]
        return np.mean([f.low < 0 < f.high for f in found])

    assert coverage(0.0) < 0.65
    assert coverage(ratio) == pytest.approx(0.95, abs=0.015)


def test_welch_is_scipys():
    first, second = (A.mean(), A.std(ddof=1), 20), (B[:7].mean(), B[:7].std(ddof=1), 7)
    truth = stats.ttest_ind(A, B[:7], equal_var=False)
    interval = truth.confidence_interval()
    found = welch_difference(first, second)
    assert found.p == pytest.approx(truth.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_holm_by_hand():
    """0.01·4, then max with 0.02·3, 0.03·2 (raised to 0.06), 0.5·1; NaN does not count."""
    found = holm([0.03, 0.01, math.nan, 0.5, 0.02])
    assert found[:2] == pytest.approx([0.06, 0.04])
    assert math.isnan(found[2])
    assert found[3:] == pytest.approx([0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_ranks_by_hand():
    errors = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [5.0, 4.0, 6.0]])
    assert mean_ranks(errors) == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3])


@pytest.mark.parametrize(("methods", "sets", "value"), [(4, 14, 1.25), (5, 10, 1.93)])
def test_critical_difference_is_the_literatures(methods, sets, value):
    """Demšar (2006): CD = 2.569 √(4·5/(6·14)) = 1.25; q of five classifiers is 2.728."""
    assert critical_difference(methods, sets) == pytest.approx(value, abs=0.005)


def test_friedman_and_wilcoxon():
    errors = RANDOM.random((8, 3))
    assert friedman(errors) == pytest.approx(stats.friedmanchisquare(*errors.T).pvalue)
    assert math.isnan(friedman(errors[:, :2]))
    assert friedman(np.ones((4, 3))) == 1
    assert wilcoxon(errors[:, 0], errors[:, 0]) == 1
    # All six of one sign: the exact two-sided p-value is 2/2⁶.
    assert wilcoxon(np.arange(1.0, 7), np.zeros(6)) == pytest.approx(2 / 64)


@pytest.mark.parametrize(
    ("claimed", "low", "high", "verdict"),
    [
        (0.3, -2, -1, "none claimed"),
        (-1.0, -1.5, -0.2, "reproduced"),
        (-1.0, -0.8, -0.2, "reproduced, smaller"),
        (-1.0, -0.8, 0.5, "not reproduced"),
        (-1.0, 0.1, 0.5, "not reproduced"),
        (-1.0, -1.5, 0.5, "undecided"),
        (-1.0, math.nan, math.nan, "undecided"),
    ],
)
def test_verdict_on_a_claimed_gain(claimed, low, high, verdict):
    assert judge_gain(claimed, Difference(0.0, low, high, 0.5, 20)) == verdict
