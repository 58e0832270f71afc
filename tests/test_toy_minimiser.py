import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.descent import Recipe, descend
from toy.max_margin import max_margin
from toy.minimiser import minimise, small_alpha_rate
from toy.objective import Objective

from .test_toy_objective import slow_risk


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_newton_agrees_with_scipy_on_the_definition(alpha):
    """BFGS on the pairwise definition with adaptive quadrature, sharing no code with the module."""
    data = planted(4, 2, 0.8, 2, np.random.default_rng(5))
    data = ToyData("four", data.x, np.array([1.0, -1.0, 1.0, -1.0]))
    answer = minimise(Objective(data, "mixup-soft", alpha))
    slow = optimize.minimize(
        lambda w: slow_risk(data, "mixup-soft", alpha, w), answer.w * 0.5, options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(answer.w, slow.x, atol=1e-6)
    assert answer.loss == pytest.approx(slow.fun, rel=1e-11)
    assert answer.gradient_norm < 1e-12


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 3e-3])
def test_newton_goes_on_where_rounding_hides_the_decrease_of_the_risk(alpha):
    """Outputs near 40, whose losses cancel to 1e-15 in a risk of 1e-3."""
    rng = np.random.default_rng(5)
    y = np.where(np.arange(60) % 2 == 0, 1.0, -1.0)
    x = rng.normal(size=(60, 2)) + 1.9 * y[:, None] * [1.0, 0.6] + [0.7, 0.2]
    answer = minimise(Objective(ToyData("off", np.round(x, 4), y).with_bias(), "mixup-soft", alpha))
    assert answer.gradient_norm < 1e-15
    assert answer.iterations < 60


def test_newton_agrees_with_a_long_descent():
    objective = Objective(load("skewed"), "mixup-soft", 1.0, nodes=48)
    w = descend([objective], Recipe(steps=4000, records=1)).w[-1, 0]
    np.testing.assert_allclose(minimise(objective).w, w, atol=1e-10)


def test_real_data_have_a_finite_soft_minimiser_away_from_the_max_margin_direction():
    data = load("clouds", n=30, d=6)
    answer = minimise(Objective(data, "mixup-soft"))
    assert answer.unique
    cosine = answer.w @ max_margin(data.signed).direction / np.linalg.norm(answer.w)
    assert 0.5 < cosine < 0.9999


def test_colinear_points_leave_the_minimiser_free_across_their_line():
    line = np.array([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [-3.0, -6.0]])
    objective = Objective(ToyData("line", line, np.array([1.0, 1.0, -1.0, -1.0])), "mixup-soft")
    answer = minimise(objective)
    assert (answer.unique, answer.rank) == (False, 1)
    across = np.array([2.0, -1.0])
    assert answer.w @ across == pytest.approx(0.0, abs=1e-12)
    moved = objective.log_risk(answer.w + 5.0 * across)
    assert moved == pytest.approx(np.log(answer.loss), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_small_alpha_diverges_like_log_of_one_over_alpha_along_the_g_margin(seed):
    """As ERM diverges, but in G's geometry, whose direction is not the Euclidean max margin's.

    G's minimiser under margins ≥ 1, from a scan of the circle, against α = 1e-4, 1e-7, 1e-10.
    """
    data = planted(8, 2, 1.0, 1, np.random.default_rng(seed))
    objective = Objective(data, "mixup-soft")
    angles = np.linspace(-np.pi, np.pi, 20_001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    margins = (circle @ data.signed.T).min(1)
    feasible = circle[margins > 0.05] / margins[margins > 0.05, None]
    rates = [small_alpha_rate(objective, w) for w in feasible]
    best = feasible[int(np.argmin(rates))]

    def angle(v, w):
        return np.degrees(np.arccos(v @ w / np.linalg.norm(v) / np.linalg.norm(w)))

    ws = [minimise(Objective(data, "mixup-soft", a)).w for a in (1e-4, 1e-7, 1e-10)]
    away = [angle(w, best) for w in ws]
    assert away[0] > away[1] > away[2]
    assert away[2] < 3.0
    growth = np.diff([np.linalg.norm(w) for w in ws])[-1] / np.log(1e3)
    assert growth == pytest.approx(np.linalg.norm(best), rel=0.03)
    assert angle(best, data.direction) > 20.0
    assert angle(ws[-1], data.direction) > 20.0


def test_one_class_has_no_finite_minimiser_when_separable_and_one_when_not():
    up = np.array([[1.0, 0.2], [2.0, -0.5], [1.5, 1.0]])
    with pytest.raises(InputError, match="all labels agree"):
        minimise(Objective(ToyData("up", up, np.ones(3)), "mixup-soft"))
    around = np.array([[1.0, 0.2], [-2.0, -0.5], [0.5, 1.0]])
    answer = minimise(Objective(ToyData("around", around, np.ones(3)), "mixup-soft"))
    assert answer.gradient_norm < 1e-12


@pytest.mark.parametrize("protocol", ["erm", "mixup-signed"])
def test_hard_labels_on_separable_data_have_no_minimiser(protocol):
    with pytest.raises(InputError, match="no finite minimiser"):
        minimise(Objective(load("skewed"), protocol))


def test_erm_on_non_separable_data_is_logistic_regression():
    data = load("moons", n=60, seed=2)
    answer = minimise(Objective(data))
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, solver="newton-cg")
    np.testing.assert_allclose(answer.w, other.fit(data.x, data.y).coef_[0], rtol=1e-6)
