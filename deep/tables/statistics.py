"""Differences between methods: within a data set by paired repetitions, across sets by ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A mean paired difference.

    Attributes:
        mean: Mean over the repetitions.
        low: Lower end of its 95 % interval; NaN with fewer than two repetitions, and where all
            of them differ by the same.
        high: Upper end.
        p: Two-sided p-value of "no difference"; NaN likewise.
        count: Number of repetitions.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int


def paired_difference(
    first: Float[np.ndarray, " repetitions"],
    second: Float[np.ndarray, " repetitions"],
    test_over_train: float = 0.0,
) -> Difference:
    """Mean of first − second with the interval of the corrected resampled t-test.

    Repetitions that split one data set anew share training examples, so their variance s² divided
    by their number J is too small; Nadeau & Bengio, "Inference for the generalization error",
    Machine Learning 52 (2003), take (1/J + n_test/n_train) s² in its place, with J − 1 degrees of
    freedom.

    Args:
        first: One number a repetition.
        second: The other method's, of the same repetitions in the same order.
        test_over_train: n_test/n_train of a split; 0 gives the ordinary paired t-test.
    """
    d = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean, count = float(d.mean()), len(d)
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    # Equal differences, but for rounding, say nothing of how much they vary.
    if float(np.ptp(d)) <= 1e-9 * float(np.abs([first, second]).max()):
        return Difference(mean, math.nan, math.nan, math.nan, count)
    scale = math.sqrt((1 / count + test_over_train) * float(d.var(ddof=1)))
    half = scale * float(stats.t.ppf(0.975, count - 1))
    p = 2 * float(stats.t.sf(abs(mean) / scale, count - 1))
    return Difference(mean, mean - half, mean + half, p, count)


def welch_difference(
    first: tuple[float, float, int], second: tuple[float, float, int]
) -> Difference:
    """Difference of two independent means, first − second, with Welch's 95 % interval.

    Args:
        first: Mean, standard deviation, number.
        second: Likewise. `count` of the result is the smaller number.
    """
    (a, s, n), (b, t, m) = first, second
    count = min(n, m)
    if count < 2 or s == t == 0:
        return Difference(a - b, math.nan, math.nan, math.nan, count)
    p = float(stats.ttest_ind_from_stats(a, s, n, b, t, m, equal_var=False).pvalue)
    u, v = s**2 / n, t**2 / m
    freedom = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (m - 1))
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(u + v)
    return Difference(a - b, a - b - half, a - b + half, p, count)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values ("A simple sequentially rejective multiple test procedure", 1979).

    NaNs, tests that could not be made, stay NaN and do not count.
    """
    known = sorted((value, k) for k, value in enumerate(p) if not math.isnan(value))
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, (value, k) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[k] = largest
    return adjusted


def wilcoxon(first: Float[np.ndarray, " sets"], second: Float[np.ndarray, " sets"]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test over data sets; 1 if all are equal."""
    d = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return 1.0 if not d.any() else float(stats.wilcoxon(d).pvalue)


def mean_ranks(errors: Float[np.ndarray, "sets methods"]) -> Float[np.ndarray, " methods"]:
    """Mean over data sets of each method's rank by error: 1 the best, ties their mean rank."""
    return stats.rankdata(errors, axis=1).mean(0)


def critical_difference(methods: int, sets: int, level: float = 0.05) -> float:
    """How far mean ranks must be apart by Nemenyi's test.

    q √(k(k+1)/6N), q the studentized range's quantile over √2; Demšar, "Statistical comparisons of
    classifiers over multiple data sets", JMLR 7 (2006), section 3.2.2.
    """
    q = float(stats.studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * sets))


def friedman(errors: Float[np.ndarray, "sets methods"]) -> float:
    """p-value of Friedman's test that all methods rank alike; NaN with fewer than three methods."""
    if errors.shape[1] < 3:
        return math.nan
    if (errors == errors[:, :1]).all():
        return 1.0
    return float(stats.friedmanchisquare(*errors.T).pvalue)


def judge_gain(claimed: float, measured: Difference) -> str:
    """Whether a gain that was claimed was found, by the 95 % interval of ours.

    Args:
        claimed: Published difference in error, negative for a gain.
        measured: Ours, in the same unit.

    Returns:
        "none claimed" if the published difference is no gain; "reproduced" if the interval lies
        below zero, "reproduced, smaller" if it also lies above the claimed difference; "not
        reproduced" if it lies above the claimed difference, which it thereby excludes, and not
        below zero; "undecided" if it holds both, or cannot be had.
    """
    if claimed >= 0:
        return "none claimed"
    excluded = measured.low > claimed
    if measured.high < 0:
        return "reproduced, smaller" if excluded else "reproduced"
    return "not reproduced" if excluded else "undecided"
