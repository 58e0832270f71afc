import mpmath
import numpy as np
import pytest
from scipy import integrate

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.objective import PROTOCOLS, Objective, log_losses


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
    value = np.exp(Objective(data, protocol, alpha, 48, diagonal).log_risk(w))
    assert value == pytest.approx(slow_risk(data, protocol, alpha, w, diagonal), rel=1e-10)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("diagonal", [True, False])
def test_gradient_and_hessian_are_those_of_the_risk(protocol, diagonal):
    """Central differences: of the risk for the gradient, of the gradient for the Hessian."""
    objective = Objective(load("clouds", n=9, d=3), protocol, 0.7, 32, diagonal)
    w = np.array([0.4, -0.8, 1.1])

    def risk(w):
        return np.exp(objective.log_risk(w))

    step = 1e-5 * np.eye(3)
    slopes = [(risk(w + e) - risk(w - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(objective.gradient(w), slopes, atol=1e-9)
    curvature = [(objective.gradient(w + e) - objective.gradient(w - e)) / 2e-5 for e in step]
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
    objective = Objective(data, "mixup-signed", alpha, 64)
    shift, pull = objective.slopes(np.ones(2))
    assert objective.log_risk(np.ones(2)) == pytest.approx(float(mpmath.log(risk)), abs=1e-11)
    # Where every loss is e^-m the slopes sum to the risk.
    assert shift + np.log(pull.sum()) == pytest.approx(float(mpmath.log(risk)), abs=1e-11)


@pytest.mark.parametrize("protocol", ["mixup-signed", "mixup-soft"])
@pytest.mark.parametrize("size", [0.3, 4.0, 60.0])
def test_as_many_nodes_are_taken_as_the_margins_need(protocol, size):
    """Early, middle and late: by default and at 400 nodes the same numbers."""
    data = load("clouds", n=15, d=3)
    if protocol == "mixup-soft":
        size /= 4.0  # its minimiser is no further out
    w = size * data.direction
    default, many = (Objective(data, protocol, 0.7, nodes) for nodes in (None, 400))
    assert default.log_risk(w) == pytest.approx(many.log_risk(w), abs=1e-12)
    np.testing.assert_allclose(default.slopes(w)[1], many.slopes(w)[1], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(default.hessian(w)[1], many.hessian(w)[1], rtol=1e-11, atol=1e-14)


def test_unusable_objectives_are_refused():
    data = load("skewed")
    with pytest.raises((InputError, TypeError), match="protocol"):
        Objective(data, "mixup")
    for bad in ({"alpha": 0.0}, {"alpha": np.inf}, {"nodes": 0}):
        with pytest.raises(InputError):
            Objective(data, "mixup-soft", **bad)
    with pytest.raises(InputError, match="two points"):
        Objective(ToyData("one", np.ones((1, 2)), np.ones(1)), "mixup-soft", diagonal=False)
