import mpmath
import numpy as np
import pytest
from scipy.special import expit

from toy.objective import log_losses
from toy.pairs import SERIES_FROM, Mixing, hessian, lobatto_rule, log_risk, pull

RNG = np.random.default_rng(0)


def one_by_one(points, m, alpha, nodes, diagonal):
    """log risk, slopes and Hessian by loops over pairs and the whole rule, shifted by min m."""
    n = len(m)
    risk, slopes, curved = 0.0, np.zeros(n), np.zeros((n, n))
    shift = max(m.min(), 0.0)
    for lam, weight in zip(*lobatto_rule(alpha, nodes), strict=True):
        for i in range(n):
            for j in range(n):
                if diagonal or i != j:
                    mixed = lam * m[i] + (1 - lam) * m[j]
                    risk += weight * np.exp(log_losses(np.array([mixed]))[0] + shift)
                    slope = np.exp(shift - np.logaddexp(0.0, mixed))
                    slopes[i] += weight * lam * slope
                    slopes[j] += weight * (1 - lam) * slope
                    bend = weight * slope * expit(mixed)
                    share = np.zeros(n)
                    share[i] += lam
                    share[j] += 1 - lam
                    curved += bend * np.outer(share, share)
    pairs = n * n if diagonal else n * (n - 1)
    hess = points.T @ curved @ points / pairs
    return np.log(risk / pairs) - shift, shift, slopes / pairs, hess


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("alpha", [0.3, 2.0])
@pytest.mark.parametrize(
    "m",
    [
        pytest.param(RNG.normal(0.0, 3.0, 7), id="both signs"),
        pytest.param(SERIES_FROM + RNG.exponential(5.0, 7), id="just in the series"),
        pytest.param(900.0 + RNG.exponential(100.0, 7), id="losses of 1e-400"),
        pytest.param(np.array([-2.0, 0.5, 30.0, 93.0, 97.0, 300.0, 2e3]), id="rows without weight"),
        pytest.param(np.array([-1e4, -800.0, 0.0, 2.0, 5.0, 900.0, 1e4]), id="huge"),
    ],
)
def test_sums_are_those_over_pairs_one_by_one(m, alpha, diagonal):
    points = RNG.normal(size=(7, 3))
    risk, shift, slopes, hess = one_by_one(points, m, alpha, 30, diagonal)
    mixing = Mixing.beta(alpha, 30, diagonal)
    assert log_risk(m, mixing) == pytest.approx(risk, rel=1e-13, abs=1e-12)
    own, mine = pull(m, mixing)
    np.testing.assert_allclose(np.exp(own + shift) * mine, slopes, rtol=1e-11, atol=1e-16)
    own, mine = hessian(points, m, mixing)
    np.testing.assert_allclose(np.exp(own + shift) * mine, hess, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("spread", [0.0, 1.0, 12.0])
def test_chebyshev_points_stand_for_many_points(spread):
    """400 points against the same points in a batch of runs, which is never interpolated."""
    m = spread * RNG.normal(size=400) + 1.0
    points = RNG.normal(size=(400, 3))
    mixing = Mixing.beta(0.7, 20)
    batch = Mixing(mixing.lam[None], mixing.weights[None])
    assert log_risk(m, mixing) == pytest.approx(log_risk(m[None], batch)[0], abs=1e-13)
    slopes = pull(m, mixing)[1]
    np.testing.assert_allclose(slopes, pull(m[None], batch)[1][0], rtol=0, atol=1e-15)
    step = 1e-5 * np.eye(3)
    sides = [[pull(m + s * points @ e, mixing)[1] @ points for s in (-1, 1)] for e in step]
    differences = [(below - above) / 2e-5 for below, above in sides]
    np.testing.assert_allclose(hessian(points, m, mixing)[1], differences, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alpha", [1e-8, 1e-3, 0.2, 1.0, 7.0])
def test_lobatto_rule_has_the_moments_of_the_law_relatively(alpha):
    """E[λ^k (1-λ)^2] is of order α as α → 0, and still right to 12 digits."""
    lam, weights = lobatto_rule(alpha, 24)
    for k in range(2, 12):
        exact = mpmath.beta(alpha + k, alpha + 2) / mpmath.beta(alpha, alpha)
        assert weights @ (lam**k * (1 - lam) ** 2) == pytest.approx(float(exact), rel=1e-12, abs=0)
    assert weights.sum() == pytest.approx(1.0, rel=1e-14)
