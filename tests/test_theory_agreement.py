"""Agreement statistics against scipy and hand-worked numbers; bootstrap against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from theory import agreement
from theory.agreement import (
    COMPARISONS,
    bootstrapped,
    compare,
    pearson,
    relative_error,
    relative_size,
    sign_agreement,
    slope,
    spearman,
)


def pairs(seed, n):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=n)
    return reference, 0.5 * reference + rng.normal(size=n)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 40))
@settings(max_examples=50)
def test_correlations_and_slope_equal_scipys(seed, n):
    reference, estimate = pairs(seed, n)
    assert pearson(reference, estimate) == pytest.approx(
        stats.pearsonr(reference, estimate).statistic, abs=1e-12
    )
    assert spearman(reference, estimate) == pytest.approx(
        stats.spearmanr(reference, estimate).statistic, abs=1e-12
    )
    assert slope(reference, estimate) == pytest.approx(
        stats.linregress(estimate, reference).slope, rel=1e-9, abs=1e-12
    )


def test_spearman_shares_ranks_among_ties():
    reference, estimate = np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 2.0])
    assert spearman(reference, estimate) == pytest.approx(
        stats.spearmanr(reference, estimate).statistic
    )


def test_sizes_and_signs_by_hand():
    reference, estimate = np.array([3.0, -4.0]), np.array([3.0, 8.0])
    assert relative_error(reference, estimate) == pytest.approx(12 / 5)
    assert relative_size(reference, estimate) == pytest.approx(np.sqrt(73) / 5)
    assert sign_agreement(reference, estimate) == 0.5


@pytest.mark.parametrize("name", ["relative_error", "pearson", "spearman", "slope"])
def test_undefined_statistics_are_nan_without_a_warning(name):
    zeros = np.zeros(5)
    assert np.isnan(COMPARISONS[name](zeros, zeros))


def test_statistics_reduce_the_last_axis_only():
    reference, estimate = np.random.default_rng(0).normal(size=(2, 7, 11))
    for statistic in COMPARISONS.values():
        together = statistic(reference, estimate)
        one_by_one = [statistic(r, e) for r, e in zip(reference, estimate, strict=True)]
        np.testing.assert_allclose(together, one_by_one)


def test_interval_of_a_mean_has_the_width_of_its_normal_approximation():
    values = np.random.default_rng(1).normal(size=400)
    got = bootstrapped(lambda v: v.mean(-1), values, resamples=4000)
    sem = values.std() / np.sqrt(len(values))
    assert got.value == pytest.approx(values.mean())
    assert got.high - got.low == pytest.approx(2 * 1.96 * sem, rel=0.05)
    assert got.low < got.value < got.high


def test_interval_covers_the_truth_as_often_as_it_says():
    """95 % intervals of a correlation of 0.6 over 200 draws: binomial within four deviations."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        u, v = rng.normal(size=(2, 100))
        interval = bootstrapped(pearson, u, 0.6 * u + 0.8 * v, resamples=400)
        covered += interval.low <= 0.6 <= interval.high
    assert abs(covered / 200 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200)


def test_interval_agrees_with_scipys_bootstrap():
    reference, estimate = pairs(3, 60)
    ours = bootstrapped(pearson, reference, estimate, resamples=20000)
    theirs = stats.bootstrap(
        (reference, estimate), lambda r, e, axis=-1: pearson(r, e), paired=True, vectorized=True,
        method="percentile", n_resamples=20000, rng=np.random.default_rng(4),
    ).confidence_interval  # fmt: skip
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


@pytest.mark.parametrize("statistic", COMPARISONS.values(), ids=COMPARISONS)
def test_resamples_taken_in_parts_are_those_taken_at_once(statistic, monkeypatch):
    """To the last bit, for records made before; 333 is odd, as are the last parts."""
    columns = pairs(6, 333)
    picks = np.random.default_rng(7).integers(0, 333, (2000, 333))
    whole = np.nanquantile(statistic(*(c[picks] for c in columns)), (0.025, 0.975))
    for at_once in (1, 333 * 7, 333 * 1999, 10**7):
        monkeypatch.setattr(agreement, "_PICKS", at_once)
        got = bootstrapped(statistic, *columns, seed=7)
        assert (got.low, got.high) == tuple(whole)


def test_memory_of_resamples_does_not_grow_with_the_examples():
    """2000 resamples of 20,000 examples at once would be 320 MB of indices alone."""
    shapes = []

    def mean(values):
        shapes.append(values.shape)
        return values.mean(-1)

    bootstrapped(mean, np.arange(20_000.0))
    assert sum(shape[0] for shape in shapes[1:]) == 2000
    assert max(math.prod(shape) for shape in shapes) <= 2**21


def test_too_few_examples_have_no_interval():
    got = bootstrapped(pearson, np.array([1.0, 2.0]), np.array([2.0, 5.0]))
    assert got.value == pytest.approx(1.0)
    assert np.isnan(got.low)
    assert np.isnan(got.high)


def test_compare_is_reproducible_and_complete():
    reference, estimate = pairs(5, 30)
    assert compare(reference, estimate, seed=1) == compare(reference, estimate, seed=1)
    assert compare(reference, estimate, seed=1) != compare(reference, estimate, seed=2)
    assert list(compare(reference, estimate)) == list(COMPARISONS)
