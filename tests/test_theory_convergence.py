"""Estimates of convergence radii against functions whose singularities are known."""

import math

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from theory.convergence import convergence_radius, mass_inside
from theory.errors import InputError
from theory.mixing import relabelled_law

# Function, its radius of convergence at 0, and whether its singularity is on the real line.
KNOWN = {
    "logarithm": (lambda a: mp.log(1 + a / mp.mpf("0.7")), 0.7, True),
    "pole": (lambda a: (1 - a / mp.mpf("0.3")) ** mp.mpf("-1.5"), 0.3, True),
    "tanh": (mp.tanh, math.pi / 2, False),
    "sigmoid": (lambda a: 1 / (1 + mp.exp(-3 * a - 1)), math.hypot(1, math.pi) / 3, False),
    "softplus": (lambda a: mp.log(1 + mp.exp(5 * a + 4)), math.hypot(4, math.pi) / 5, False),
}


def coefficients(function, order):
    with mp.workdps(60):
        return np.array([float(c) for c in mp.taylor(function, 0, order)])[:, None]


@pytest.mark.parametrize("name", KNOWN)
def test_known_radii_are_found_to_a_tenth_at_order_thirty(name):
    function, radius, real = KNOWN[name]
    found = convergence_radius(coefficients(function, 30))
    assert found.ratio[0] == pytest.approx(radius, rel=0.1)
    assert found.root[0] == pytest.approx(radius, rel=0.1)
    if real:  # Domb and Sykes' line is exact for (1 − a/r)^p
        assert found.domb_sykes[0] == pytest.approx(radius, rel=1e-6)
    else:
        assert math.isnan(found.domb_sykes[0])


@pytest.mark.parametrize("name", KNOWN)
def test_estimates_improve_with_the_order(name):
    function, radius, _ = KNOWN[name]
    errors = [
        abs(convergence_radius(coefficients(function, order)).root[0] - radius)
        for order in (8, 40)
    ]  # fmt: skip
    assert errors[1] < errors[0]


def test_an_entire_function_has_a_radius_that_grows_and_a_polynomial_an_infinite_one():
    grown = [convergence_radius(coefficients(mp.exp, order)).root[0] for order in (10, 20, 40)]
    assert 2 < grown[0] < grown[1] < grown[2]
    cubic = np.array([1.0, -2.0, 0.5, 3.0] + [0.0] * 9)[:, None]
    found = convergence_radius(cubic)
    assert np.isinf([found.ratio, found.root, found.domb_sykes]).all()


def test_series_are_judged_each_by_itself():
    columns = [coefficients(KNOWN[name][0], 20) for name in KNOWN]
    together = convergence_radius(np.concatenate(columns, 1))
    for k, column in enumerate(columns):
        alone = convergence_radius(column)
        for name in ("ratio", "root", "domb_sykes"):
            np.testing.assert_allclose(getattr(together, name)[k], getattr(alone, name)[0])


def test_rounding_in_place_of_zeros_does_no_harm():
    exact = coefficients(mp.tanh, 24)
    noisy = exact + 1e-17 * np.random.default_rng(0).standard_normal(exact.shape)
    assert convergence_radius(noisy).root[0] == pytest.approx(math.pi / 2, rel=0.03)
    assert convergence_radius(noisy).ratio[0] == pytest.approx(math.pi / 2, rel=0.03)


def test_too_few_coefficients_are_refused():
    with pytest.raises(InputError, match="cannot be estimated from order 3"):
        convergence_radius(np.ones((4, 2)))


@pytest.mark.parametrize("parameters", [(0.2, None), (1.0, None), (2.0, 0.5)])
def test_the_mass_inside_is_the_integral_of_the_density(parameters):
    alpha, other = parameters[0], parameters[1] or parameters[0]
    law = relabelled_law(*parameters)
    share = alpha / (alpha + other)
    # λ has density share·Beta(α+1, β) + (1 − share)·Beta(β+1, α); a < r means λ > 1 − r.
    for radius in (0.1, 0.5, 0.9):
        truth = quad(
            lambda lam: share * beta.pdf(lam, alpha + 1, other)
            + (1 - share) * beta.pdf(lam, other + 1, alpha),
            1 - radius, 1,
        )[0]  # fmt: skip
        assert mass_inside(law, np.array([radius]))[0] == pytest.approx(truth, rel=1e-7)
    np.testing.assert_array_equal(mass_inside(law, np.array([0.0, 1.0, np.inf])), [0, 1, 1])
