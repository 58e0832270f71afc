import numpy as np
import pytest

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.flow import gradient_flow
from toy.objective import Objective
from toy.rates import fit_power, late_rates, mixing_correction, mixing_rate, residual_limit

FIVE = ToyData(
    "five", np.array([[0.5, 1.5], [1.25, 0.75], [2.0, 3.0], [4.0, 2.0], [2.5, 2.0]]), np.ones(5)
)
"""Two support vectors, (1, 1)/√2 the direction, √2 the margin; three points well behind."""


def test_fit_power_recovers_a_shifted_power():
    x = np.linspace(50.0, 200.0, 60)
    p, error = fit_power(x, 3.0 * (x + 7.0) ** -1.5)
    assert p == pytest.approx(-1.5, abs=1e-8)
    assert error < 1e-6
    p, error = fit_power(x, 3.0 * (x + 7.0) ** -1.5 * (1 + 2.0 * x**-0.4), 0.4)
    assert p == pytest.approx(-1.5, abs=1e-5)
    with pytest.raises(InputError, match="positive"):
        fit_power(x, x - 100.0)


@pytest.mark.parametrize(
    ("protocol", "alpha"),
    [("erm", 1.0), ("mixup-signed", 0.4), ("mixup-signed", 1.0), ("mixup-signed", 3.0)],
)
def test_fitted_rates_lie_within_their_standard_errors_of_theory(protocol, alpha):
    """Loss t^-1, norm log t/γ, margin gap 1/log t, angle gap 1/log² t, whatever Beta does."""
    objective = Objective(load("skewed"), protocol, alpha)
    for rate in late_rates(objective, gradient_flow(objective, 200.0)):
        assert abs(rate.fitted - rate.theory) <= rate.stderr, rate
        assert rate.stderr < 0.3 * abs(rate.theory), rate


def test_a_single_support_vector_makes_the_margin_gap_that_of_the_angle():
    """(1, 1) alone carries the margin: min z·w/‖w‖ is γ cos, so both gaps fall like 1/log² t."""
    z = np.array([[1.0, 1.0], [4.0, 1.0], [2.0, 5.0], [3.0, 2.0]])
    objective = Objective(ToyData("one", z, np.ones(4)))
    path = gradient_flow(objective, 200.0)
    assert path.reference.support.sum() == 1
    rates = {rate.name: rate for rate in late_rates(objective, path)}
    rate = rates["margin gap ~ (log t)^p"]
    assert rate.theory == -2.0
    assert abs(rate.fitted - rate.theory) <= rate.stderr < 0.3


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 2.0])
def test_beta_sets_the_exponent_and_the_size_of_the_signed_correction(alpha):
    """The residual w − ŵ log t reaches its limit like C (log t)^-α, for α < 1, = 1, > 1."""
    objective = Objective(FIVE, "mixup-signed", alpha)
    path = gradient_flow(objective, 300.0, times=401)
    rate = mixing_rate(objective, path)
    assert abs(rate.fitted + alpha) <= rate.stderr < 0.1 * alpha
    limit, _ = residual_limit(objective, path.reference)
    s = path.log_t[1:, None]
    offset = path.w[1:] - s * path.reference.w - limit
    predicted = mixing_correction(objective, path.reference) * s**-alpha
    miss = np.linalg.norm(offset - predicted, axis=1) / np.linalg.norm(predicted, axis=1)
    # What is left is the next order, (log t)^-min(α, 1) relatively.
    halved = miss[-1] / miss[len(miss) // 2]
    assert miss[-1] < 0.12
    assert halved == pytest.approx(0.5 ** min(alpha, 1.0), abs=0.1)


def test_erm_reaches_its_residual_faster_than_any_power_of_log_t():
    """Two support vectors in the plane fix w − ŵ log t: e^{-z_s·r}/n is the dual of z_s."""
    objective = Objective(FIVE)
    path = gradient_flow(objective, 60.0)
    limit, _ = residual_limit(objective, path.reference)
    np.testing.assert_allclose(
        np.exp(-FIVE.signed[:2] @ limit) / 5, path.reference.duals[:2], rtol=1e-10
    )
    offset = path.w[-1] - path.log_t[-1] * path.reference.w
    np.testing.assert_allclose(offset, limit, atol=1e-9)


@pytest.mark.parametrize("protocol", ["erm", "mixup-signed"])
def test_loss_times_t_tends_to_one_over_margin_squared(protocol):
    path = gradient_flow(Objective(FIVE, protocol, 2.0), 200.0, times=2)
    limit = np.exp(path.log_loss[-1] + path.log_t[-1]) * path.reference.margin**2
    assert limit == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_without_the_diagonal_one_support_vector_costs_alpha_log_log_t(alpha):
    """‖w‖ γ = log t − α log log t + O(1); the fit carries the next order along."""
    data = planted(8, 2, 1.0, 1, np.random.default_rng(1))
    path = gradient_flow(Objective(data, "mixup-signed", alpha, diagonal=False), 300.0)
    s = path.log_t[path.log_t > path.log_t[-1] / 2]
    lag = path.norm[-len(s) :] * path.reference.margin - s
    terms = np.stack([np.log(s), np.ones_like(s), 1 / s, np.log(s) / s], axis=1)
    assert np.linalg.lstsq(terms, lag)[0][0] == pytest.approx(-alpha, rel=1e-3)


def test_the_published_symmetric_set_has_no_power_law_angle_gap():
    """Equal duals leave no sideways residual: the gap falls like a power of t, to rounding."""
    symmetric = gradient_flow(Objective(load("soudry")), 100.0)
    with pytest.raises(InputError, match="symmetric"):
        late_rates(Objective(load("soudry")), symmetric)


def test_rates_do_not_depend_on_the_unit_of_the_data():
    rates = [
        late_rates(objective, gradient_flow(objective, 100.0))
        for scale in (1.0, 1e-9)
        for objective in [Objective(ToyData("scaled", scale * FIVE.x, FIVE.y))]
    ]
    for plain, scaled in zip(*rates, strict=True):
        assert scaled.theory in (plain.theory, pytest.approx(1e9 * plain.theory))
        assert abs(scaled.fitted - scaled.theory) <= scaled.stderr


def test_questions_without_an_answer_are_refused():
    path = gradient_flow(Objective(FIVE), 5.0)
    with pytest.raises(InputError, match="longer flow"):
        late_rates(Objective(FIVE), path)
    tiny = Objective(ToyData("tiny", 1e-30 * FIVE.x, FIVE.y))
    with pytest.raises(InputError, match="rescale"):
        late_rates(tiny, gradient_flow(tiny, 30.0, 20))
    with pytest.raises(InputError, match="nothing diverges"):
        late_rates(Objective(FIVE, "mixup-soft"), path)
    with pytest.raises(InputError, match="no limit"):
        residual_limit(Objective(FIVE, "mixup-soft"), path.reference)
    with pytest.raises(InputError, match="mixup-signed"):
        mixing_rate(Objective(FIVE), path)
    with pytest.raises(InputError, match="mixup-signed"):
        mixing_correction(Objective(FIVE), path.reference)
    one = planted(8, 2, 1.0, 1, np.random.default_rng(0))
    lonely = Objective(one, "mixup-signed", diagonal=False)
    with pytest.raises(InputError, match="no limit"):
        residual_limit(lonely, gradient_flow(lonely, 5.0).reference)
