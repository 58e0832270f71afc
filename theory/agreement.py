"""How well an estimate agrees with the truth over a set of examples, with its uncertainty.

Every statistic takes (reference, estimate) with examples on the last axis, so that the bootstrap
can evaluate all its resamples in one call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

Reduced = np.ndarray | np.floating  # NumPy reduces a vector to a scalar, a matrix to a vector
Statistic = Callable[..., Reduced]
_PICKS = 2**21  # examples that are resampled at once, 16 MiB a column


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % percentile bootstrap interval over examples.

    The interval is NaN where it cannot be had (fewer than three examples); the value is NaN where
    the statistic is undefined (a correlation with a constant, an error relative to zero).
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


def relative_error(reference: np.ndarray, estimate: np.ndarray) -> Reduced:
    """‖reference − estimate‖ / ‖reference‖, Euclidean norms over examples."""
    return _ratio(np.linalg.norm(reference - estimate, axis=-1), np.linalg.norm(reference, axis=-1))


def relative_size(reference: np.ndarray, part: np.ndarray) -> Reduced:
    """‖part‖ / ‖reference‖, Euclidean norms over examples."""
    return _ratio(np.linalg.norm(part, axis=-1), np.linalg.norm(reference, axis=-1))


def pearson(reference: np.ndarray, estimate: np.ndarray) -> Reduced:
    """Pearson's linear correlation."""
    u = reference - reference.mean(-1, keepdims=True)
    v = estimate - estimate.mean(-1, keepdims=True)
    return _ratio((u * v).sum(-1), np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1))


def spearman(reference: np.ndarray, estimate: np.ndarray) -> Reduced:
    """Spearman's rank correlation, ties given their mean rank."""
    return pearson(stats.rankdata(reference, axis=-1), stats.rankdata(estimate, axis=-1))


def sign_agreement(reference: np.ndarray, estimate: np.ndarray) -> Reduced:
    """Fraction of examples on which both have the same sign."""
    return (np.sign(reference) == np.sign(estimate)).mean(-1)


def slope(reference: np.ndarray, estimate: np.ndarray) -> Reduced:
    """Least-squares slope of the reference on the estimate; 1 for a calibrated estimate."""
    v = estimate - estimate.mean(-1, keepdims=True)
    return _ratio((reference * v).sum(-1), (v * v).sum(-1))


def _ratio(numerator: Reduced, denominator: Reduced) -> Reduced:
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)


COMPARISONS: dict[str, Statistic] = {
    "relative_error": relative_error,
    "pearson": pearson,
    "spearman": spearman,
    "sign_agreement": sign_agreement,
    "slope": slope,
}


def bootstrapped(
    statistic: Statistic, *columns: np.ndarray, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """A statistic of paired columns with its bootstrap interval over examples.

    Args:
        statistic: Called with the columns; reduces their last axis.
        *columns: Arrays of shape (examples,), resampled together.
        seed: Of the resampling.
        resamples: Number of bootstrap resamples.
    """
    value = float(statistic(*columns))
    if len(columns[0]) < 3 or not np.isfinite(value):
        return Estimate(value)
    # Resamples in which the statistic is undefined are left out by nanquantile.
    rng, n = np.random.default_rng(seed), len(columns[0])
    at_once = max(1, _PICKS // n)
    found = []
    for start in range(0, resamples, at_once):  # the same draws however many are taken at once
        picks = rng.integers(0, n, (min(at_once, resamples - start), n))
        found.append(statistic(*(c[picks] for c in columns)))
    low, high = np.nanquantile(np.concatenate(found), (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def compare(reference: np.ndarray, estimate: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """All of `COMPARISONS` of an estimate with its reference, each with an interval."""
    return {
        name: bootstrapped(statistic, reference, estimate, seed=seed)
        for name, statistic in COMPARISONS.items()
    }
