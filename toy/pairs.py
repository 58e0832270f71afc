"""Averages over all pairs and over λ of the logistic loss at mixed margins.

Mixed margins are affine in λ, m_ij(λ) = λ m_i + (1−λ) m_j, so no mixed point is ever formed: n
margins are all that a risk, its slopes and its curvature need. With Σ_ij over the pairs,

    risk = Σ_ij E_λ softplus(−m_ij(λ)) / pairs,   λ ~ Beta(α, α) by quadrature.

(λ, i, j) and (1−λ, j, i) are one mixed point, so half of the nodes do. Two ways to sum:

* Where every margin exceeds 3, softplus(−m) = Σ_k (−1)^{k−1} e^{−km}/k, and e^{−k m_ij(λ)} =
  e^{−kλ m_i} e^{−k(1−λ) m_j}: a sum over pairs is a product of two sums over points, with at most
  13 terms k to 1e-17. Nothing underflows, as e^{min m} is carried apart.
* Elsewhere pair by pair. There softplus is analytic as far as ±πi, so as functions of m_i and m_j
  all sums are polynomials to 1e-16: many points are replaced by c Chebyshev points and weights
  Σ_i ℓ_k(m_i), with ℓ_k Lagrange's polynomials. c is about 50 where margins spread over 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.polynomial import chebyshev

from theory.errors import InputError
from theory.mixing import beta_law

SERIES_FROM = 3.0
"""Smallest margin from which the sums factor."""
BLOCK = 2**18
"""Mixed margins held at once: 2 MiB."""


@lru_cache(maxsize=256)
def lobatto_rule(
    alpha: float, nodes: int
) -> tuple[Float64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """Gauss–Lobatto–Jacobi rule for λ ~ Beta(α, α): (λ, weights), `nodes` + 2 of each.

    E[φ] = (φ(0) + φ(1))/2 + α/(2(2α+1)) E_{Beta(α+1, α+1)}[(φ − chord)/(λ(1−λ))], the last by
    Gauss–Jacobi. As α → 0 the mass moves to the ends, where a plain Gauss–Jacobi rule knows the
    inner weights (of order α) only to 1e-16 absolutely; here they keep their relative accuracy.

    Raises:
        InputError: If α is not positive and finite or too large, or there is no node.
    """
    beta_law(alpha)
    a, inner = beta_law(alpha + 1.0).quadrature(nodes)
    if not np.isfinite(inner).all():
        raise InputError(
            f"alpha is {alpha:g}: too large for the quadrature over λ, choose a smaller"
        )
    inner = inner * alpha / (2.0 * (2.0 * alpha + 1.0)) / (a * (1.0 - a))
    end = (1.0 - inner.sum()) / 2.0
    return np.r_[0.0, 1.0 - a, 1.0], np.r_[end, inner, end]


@dataclass(frozen=True)
class Mixing:
    """The rule of λ and the pairs of an average, for any number of runs at once.

    Attributes:
        lam: Nodes of λ, those below 1/2 left out.
        weights: Their weights, summing to one.
        diagonal: Whether the pairs i = j belong to the average.
    """

    lam: Float64[np.ndarray, "*runs q"]
    weights: Float64[np.ndarray, "*runs q"]
    diagonal: bool = True

    @classmethod
    def beta(cls, alpha: float, nodes: int, diagonal: bool = True) -> Mixing:
        """λ ~ Beta(α, α) by `lobatto_rule`, folded at 1/2."""
        lam, weights = lobatto_rule(alpha, nodes)
        upper = lam > 0.5 - 1e-9
        return cls(
            lam[upper], weights[upper] * np.where(lam[upper] > 0.5 + 1e-9, 2.0, 1.0), diagonal
        )

    def pairs(self, n: int) -> int:
        """Number of pairs of n points."""
        return n * n if self.diagonal else n * (n - 1)

    def partners(self, values: Float64[np.ndarray, "*runs n"]) -> np.ndarray:
        """For every i the sum of the values over its partners j."""
        if self.diagonal:
            return values.sum(-1, keepdims=True)
        # Not the sum less the own value, which would cancel where that one dominates.
        return values @ (1.0 - np.eye(values.shape[-1]))


@dataclass(frozen=True)
class _Series:
    """The terms k of the series at all nodes: weights × e^{−kλ m_i} e^{−k(1−λ) m_j} e^{shift}."""

    k: np.ndarray
    lam: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    second: np.ndarray


def _series(margins: np.ndarray, shift: np.ndarray, mixing: Mixing) -> _Series:
    terms = np.arange(1.0, 2.0 + 38.0 // shift.min())[:, None]
    signs = np.where(terms % 2 == 1, 1.0, -1.0)

    def flat(values: np.ndarray) -> np.ndarray:
        return values.reshape(*values.shape[:-2], -1)

    lam = mixing.lam[..., None, :]
    decay = signs * np.exp(-(terms - 1.0) * shift[..., None, None])
    excess = (margins - shift[..., None])[..., None, :]
    return _Series(
        k=flat(np.broadcast_to(terms, (len(terms), lam.shape[-1]))),
        lam=flat(np.broadcast_to(lam, (*lam.shape[:-2], len(terms), lam.shape[-1]))),
        weights=flat(mixing.weights[..., None, :] * decay),
        first=np.exp(-flat(terms * lam)[..., None] * excess),
        second=np.exp(-flat(terms * (1.0 - lam))[..., None] * excess),
    )


def ellipse(margins: Float64[np.ndarray, "*runs n"]) -> float:
    """ρ of the largest Bernstein ellipse, its foci the extreme margins, where softplus is smooth.

    Its nearest poles are ±πi. Gauss's rule of q nodes errs like ρ^(−2q), interpolation at c
    Chebyshev points like ρ^(−c).
    """
    half = max(float(np.ptp(margins)) / 2.0, 1e-9)
    pole = complex(-float(margins.min()) - half, np.pi) / half
    root = np.sqrt(pole * pole - 1.0)
    return float(max(abs(pole + root), abs(pole - root)))


@dataclass(frozen=True)
class _Dense:
    """Where the pairs are summed: the points, or Chebyshev points in their place.

    Attributes:
        at: Margins.
        counts: How many points each stands for.
        basis: ℓ_k(m_i), (points, Chebyshev points); None where the points stand for themselves.
    """

    at: Float64[np.ndarray, "*runs c"]
    counts: Float64[np.ndarray, " c"]
    basis: Float64[np.ndarray, "n c"] | None = None

    @classmethod
    def of(cls, margins: Float64[np.ndarray, "*runs n"], mixing: Mixing) -> _Dense:
        n = margins.shape[-1]
        if margins.ndim == 1 and mixing.diagonal and n > 16:
            c = int(4.0 + 37.0 / np.log(ellipse(margins)))
            if 2 * c < n:
                low, half = margins.min(), max(np.ptp(margins) / 2.0, 1e-9)
                x = chebyshev.chebpts1(c)
                terms = chebyshev.chebvander((margins - low) / half - 1.0, c - 1)
                terms[:, 1:] *= 2.0
                basis = terms @ chebyshev.chebvander(x, c - 1).T / c
                return cls(low + half * (x + 1.0), basis.sum(0), basis)
        return cls(margins, np.ones(n))

    def spread(self, values: Float64[np.ndarray, "*runs c"]) -> Float64[np.ndarray, "*runs n"]:
        """A function known at `at`, at the points."""
        return values if self.basis is None else self.basis @ values

    def blocks(self, mixing: Mixing) -> Iterator[tuple[np.ndarray, np.ndarray, Any, np.ndarray]]:
        """(λ, weights, rows i, mixed margins of all pairs (i, j)), some nodes at a time.

        Pairs left out get infinity. Rows are left out that add less than e^−45 of the largest
        term: as λ ≥ 1/2, those whose least margin at λ = 1/2 is that large.
        """
        rows: Any = slice(None)
        if self.at.ndim == 1:
            lowest = self.at.min()
            near = self.at + lowest <= 2.0 * (max(lowest, 0.0) + 45.0)
            rows = rows if near.all() else np.flatnonzero(near)
        first = self.at[..., rows]
        size = max(1, BLOCK // (first.size * self.counts.size))
        for start in range(0, mixing.lam.shape[-1], size):
            lam = mixing.lam[..., start : start + size]
            own = lam[..., None, None]
            mixed = own * first[..., None, :, None] + (1.0 - own) * self.at[..., None, None, :]
            if not mixing.diagonal:
                index = np.arange(self.counts.size)[rows]
                mixed[..., np.arange(index.size), index] = np.inf
            yield lam, mixing.weights[..., start : start + size], rows, mixed


def _odds(margins: np.ndarray) -> np.ndarray:
    # Beyond 700 the slope is 1 and the loss −m, to the last bit.
    odds = np.minimum(-margins, 700.0)
    return np.asarray(np.exp(odds, out=odds))


def log_risk(
    margins: Float64[np.ndarray, "*runs n"], mixing: Mixing
) -> Float64[np.ndarray, "*runs"]:
    """The natural logarithm of the mixed risk, right at 1e-400 and beyond."""
    pairs = mixing.pairs(margins.shape[-1])
    shift = np.asarray(margins.min(-1))
    if shift.min() >= SERIES_FROM:
        s = _series(margins, shift, mixing)
        sums = (s.first * mixing.partners(s.second)).sum(-1)
        return np.asarray(np.log((s.weights / s.k * sums).sum(-1) / pairs) - shift)
    dense = _Dense.of(margins, mixing)
    total = np.zeros(margins.shape[:-1])
    for _, weights, rows, mixed in dense.blocks(mixing):
        losses = np.log1p(_odds(mixed)) + np.maximum(-mixed - 700.0, 0.0)
        total += (weights * (losses @ dense.counts @ dense.counts[rows])).sum(-1)
    return np.asarray(np.log(total / pairs))


def pull(
    margins: Float64[np.ndarray, "*runs n"], mixing: Mixing
) -> tuple[Float64[np.ndarray, "*runs"], Float64[np.ndarray, "*runs n"]]:
    """(shift, slopes) with −∂risk/∂m_i = exp(shift) slopes_i."""
    pairs = mixing.pairs(margins.shape[-1])
    shift = np.asarray(margins.min(-1))
    # The pair (i, j) pulls i with λ and j with 1 − λ.
    if shift.min() >= SERIES_FROM:
        s = _series(margins, shift, mixing)
        own, other = (s.weights * s.lam)[..., None], (s.weights * (1.0 - s.lam))[..., None]
        slopes = own * s.first * mixing.partners(s.second)
        slopes += other * s.second * mixing.partners(s.first)
        return np.asarray(-shift), np.asarray(slopes.sum(-2) / pairs)
    dense = _Dense.of(margins, mixing)
    total = np.zeros_like(dense.at)
    for lam, weights, rows, mixed in dense.blocks(mixing):
        slopes = _odds(mixed)
        slopes /= 1.0 + slopes
        total[..., rows] += ((weights * lam)[..., None] * (slopes @ dense.counts)).sum(-2)
        total += ((weights * (1.0 - lam))[..., None] * (dense.counts[rows] @ slopes)).sum(-2)
    return np.zeros(margins.shape[:-1]), dense.spread(total) / pairs


def hessian(
    points: Float64[np.ndarray, "n d"], margins: Float64[np.ndarray, " n"], mixing: Mixing
) -> tuple[float, Float64[np.ndarray, "d d"]]:
    """(shift, H) with Σ_ij p_i (∂²risk/∂m_i∂m_j) p_jᵀ = exp(shift) H."""
    pairs = mixing.pairs(margins.size)
    shift = margins.min()
    if shift >= SERIES_FROM:
        s = _series(margins, np.asarray(shift), mixing)
        weights = s.weights * s.k
        own = (weights * s.lam**2) @ (s.first * mixing.partners(s.second))
        own += (weights * (1.0 - s.lam) ** 2) @ (s.second * mixing.partners(s.first))
        weights *= s.lam * (1.0 - s.lam)
        cross = (s.first @ points).T @ (weights[:, None] * (s.second @ points))
        if not mixing.diagonal:
            cross -= points.T @ ((weights @ (s.first * s.second))[:, None] * points)
    else:
        shift, dense = 0.0, _Dense.of(margins, mixing)
        at_grid = np.zeros(dense.at.size)
        between = np.zeros((dense.at.size, dense.at.size))
        for lam, weights, rows, mixed in dense.blocks(mixing):
            slopes = _odds(mixed)
            slopes /= 1.0 + slopes
            slopes *= 1.0 - slopes
            at_grid[rows] += (weights * lam**2) @ (slopes @ dense.counts)
            at_grid += (weights * (1.0 - lam) ** 2) @ (dense.counts[rows] @ slopes)
            between[rows] += np.tensordot(weights * lam * (1.0 - lam), slopes, 1)
        own = dense.spread(at_grid)
        seen = points if dense.basis is None else dense.basis.T @ points
        cross = seen.T @ between @ seen
    return -float(shift), ((points.T * own) @ points + cross + cross.T) / pairs
