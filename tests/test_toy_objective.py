import mpmath
import numpy as np
import pytest
from scipy import integrate

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.objective import PROTOCOLS, Objective, evaluate, lobatto_rule, log_losses


def slow_risk(data, protocol, alpha, w, diagonal=True):
    """The definition, pair by pair, by adaptive quadrature against the Beta density."""
    n = len(data.y)
    t = (1 + data.y) / 2
    if protocol == "erm":
        return np.logaddexp(0, -data.signed @ w).mean()

    def pair(i, j):
        def at(lam):
            if protocol == "mixup-signed":
                return np.logaddexp(0, -w @ (lam * data.signed[i] + (1 - lam) * data.signed[j]))
            f = w @ (lam * data.x[i] + (1 - lam) * data.x[j])
            return np.logaddexp(0, f) - (lam * t[i] + (1 - lam) * t[j]) * f

        law = {"weight": "alg", "wvar": (alpha - 1, alpha - 1), "epsabs": 0, "epsrel": 1e-12}
        total = integrate.quad(lambda lam: 1.0, 0, 1, **law)[0]
        return integrate.quad(at, 0, 1, **law)[0] / total

    kept = [(i, j) for i in range(n) for j in range(n) if diagonal or i != j]
    return np.mean([pair(i, j) for i, j in kept])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("alpha", "diagonal"), [(0.3, True), (1.0, False), (2.5, True)])
def test_risk_is_its_definition(protocol, alpha, diagonal):
    data = planted(5, 3, 0.5, 3, np.random.default_rng(1))
    w = np.array([0.7, -1.3, 2.1])
    value = np.exp(Objective(data, protocol, alpha, 48, diagonal).evaluate(w)[0])
    assert value == pytest.approx(slow_risk(data, protocol, alpha, w, diagonal), rel=1e-10)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("diagonal", [True, False])
def test_gradient_and_hessian_are_those_of_the_risk(protocol, diagonal):
    """Central differences: of the risk for the gradient, of the gradient for the Hessian."""
    objective = Objective(load("clouds", n=9, d=3), protocol, 0.7, 32, diagonal)
    w = np.array([0.4, -0.8, 1.1])

    def risk(w):
        return np.exp(objective.evaluate(w)[0])

    def gradient(w):
        _, shift, pull = objective.evaluate(w)
        return -np.exp(shift) * pull @ objective.points

    step = 1e-5 * np.eye(3)
    slopes = [(risk(w + e) - risk(w - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(gradient(w), slopes, atol=1e-9)
    curvature = [(gradient(w + e) - gradient(w - e)) / 2e-5 for e in step]
    shift, hessian = objective.hessian(w)
    np.testing.assert_allclose(np.exp(shift) * hessian, curvature, atol=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_smoothness_is_the_curvature_where_it_is_largest(protocol):
    """As softplus'' = 1/4 at every output 0, so at w = 0 the bound is attained."""
    objective = Objective(load("clouds", n=9, d=3), protocol, 0.4)
    top = np.linalg.eigvalsh(objective.hessian(np.zeros(3))[1])[-1]
    assert objective.smoothness() == pytest.approx(top, rel=1e-12)


@pytest.mark.parametrize("margin", [-1e5, -750.0, -3.0, 0.0, 5.0, 36.9, 745.5, 921.0, 1e5])
def test_log_loss_is_right_far_below_the_smallest_float(margin):
    """921 is a loss of 1e-400, 1e5 one of 1e-43430; mpmath has no underflow."""
    with mpmath.workdps(50):
        loss = mpmath.log1p(mpmath.exp(-mpmath.mpf(margin))) if margin < 100 else None
        exact = mpmath.log(loss) if loss is not None else -mpmath.mpf(margin)
    assert log_losses(np.array([margin]))[0] == pytest.approx(float(exact), rel=1e-15)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_signed_risk_and_slopes_near_1e_minus_400(alpha):
    """Where softplus is e^-m, E_λ e^{-λa - (1-λ)b} is Kummer's e^-a M(α, 2α, a - b)."""
    data = ToyData("two", np.array([[921.0, 0.0], [0.0, 1100.0]]), np.ones(2))
    a, b = (mpmath.mpf(v) for v in (921, 1100))
    cross = mpmath.exp(-a) * mpmath.hyp1f1(alpha, 2 * alpha, a - b)
    risk = (mpmath.exp(-a) + mpmath.exp(-b) + 2 * cross) / 4
    log_risk, shift, pull = Objective(data, "mixup-signed", alpha, 64).evaluate(np.ones(2))
    assert log_risk == pytest.approx(float(mpmath.log(risk)), abs=1e-11)
    # Where every loss is e^-m the slopes sum to the risk.
    assert shift + np.log(pull.sum()) == pytest.approx(float(mpmath.log(risk)), abs=1e-11)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_dropped_pairs_and_adaptive_nodes_change_nothing(alpha):
    """Late margins spread over hundreds; all pairs at 400 nodes are the truth."""
    data = load("clouds", n=15, d=3)
    w = 60.0 * data.direction
    fast, slow = (Objective(data, "mixup-signed", alpha, nodes) for nodes in (None, 400))
    everything = evaluate("mixup-signed", data.signed @ w, slow.targets, slow.mixing())
    assert np.ptp(data.signed @ w) > 100.0
    for mine, truth in zip(fast.evaluate(w), everything, strict=True):
        np.testing.assert_allclose(mine, truth, rtol=1e-11, atol=1e-13)
    shift, hessian = fast.hessian(w)
    step = 1e-4 * np.eye(3)

    def gradient(w):
        _, own, pull = fast.evaluate(w)
        return -np.exp(own - shift) * pull @ data.signed

    curvature = [(gradient(w + e) - gradient(w - e)) / 2e-4 for e in step]
    np.testing.assert_allclose(hessian, curvature, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-8, 1e-3, 0.2, 1.0, 7.0])
def test_lobatto_rule_has_the_moments_of_the_law_relatively(alpha):
    """E[λ^k (1-λ)^2] is of order α as α → 0, and still right to 12 digits."""
    lam, weights = lobatto_rule(alpha, 24)
    for k in range(2, 12):
        exact = mpmath.beta(alpha + k, alpha + 2) / mpmath.beta(alpha, alpha)
        assert weights @ (lam**k * (1 - lam) ** 2) == pytest.approx(float(exact), rel=1e-12, abs=0)
    assert weights.sum() == pytest.approx(1.0, rel=1e-14)


def test_unusable_objectives_are_refused():
    data = load("skewed")
    with pytest.raises((InputError, TypeError), match="protocol"):
        Objective(data, "mixup")
    for bad in ({"alpha": 0.0}, {"alpha": np.inf}, {"nodes": 0}):
        with pytest.raises(InputError):
            Objective(data, "mixup-soft", **bad)
    with pytest.raises(InputError, match="two points"):
        Objective(ToyData("one", np.ones((1, 2)), np.ones(1)), "mixup-soft", diagonal=False)
