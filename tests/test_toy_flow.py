from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.descent import Recipe, descend
from toy.flow import gradient_flow
from toy.max_margin import max_margin
from toy.minimiser import minimise
from toy.objective import Objective


@pytest.mark.parametrize("protocol", ["erm", "mixup-signed"])
def test_two_integrators_agree(protocol):
    """LSODA (multistep) and Radau (implicit Runge–Kutta), to t = 1e30."""
    objective = Objective(load("skewed"), protocol)
    one = gradient_flow(objective, times=20)
    other = gradient_flow(objective, times=20, method="Radau", rtol=1e-11)
    np.testing.assert_allclose(one.w, other.w, rtol=0, atol=1e-9)


@pytest.mark.parametrize("protocol", ["erm", "mixup-signed"])
def test_descent_is_the_flow_up_to_its_first_order_in_the_step(protocol):
    objective = Objective(load("skewed"), protocol, nodes=24)
    exact = gradient_flow(objective, 2.0, times=2).w[-1]
    sizes = np.array([0.2, 0.1, 0.05, 0.025])
    errors = [
        np.linalg.norm(
            descend([objective], Recipe(steps=round(100 / h), step=h, records=1)).w[-1, 0] - exact
        )
        for h in sizes
    ]
    order = np.polyfit(np.log(sizes[1:]), np.log(errors[1:]), 1)[0]
    assert order == pytest.approx(1.0, abs=0.05)


def plain_python_descent(points, step, time):
    """Gradient descent on the logistic risk of 2-d points, on floats alone: 1 µs a point."""
    w1, w2, rate = 0.0, 0.0, step / len(points)
    for _ in range(round(time / step)):
        g1 = g2 = 0.0
        for z1, z2 in points:
            slope = rate / (1.0 + exp(w1 * z1 + w2 * z2))
            g1 += slope * z1
            g2 += slope * z2
        w1, w2 = w1 + g1, w2 + g2
    return np.array([w1, w2])


def test_descent_is_the_flow_up_to_its_first_order_in_the_step_after_a_million_units():
    points = [(0.5, 0.9), (1.0, 0.4), (1.2, 1.1)]
    exact = gradient_flow(Objective(ToyData("three", np.array(points), np.ones(3))), 6.0, times=2)
    assert 12.0 < exact.norm[-1] < 14.0
    coarse, fine = (
        np.linalg.norm(plain_python_descent(points, step, 1e6) - exact.w[-1]) for step in (2.0, 1.0)
    )
    assert np.log2(coarse / fine) == pytest.approx(1.0, abs=0.1)


def test_generic_ratio_is_far_from_one_at_1e30_yet_the_residual_is_bounded():
    data = planted(30, 4, 0.25, 4, np.random.default_rng(2))
    path = gradient_flow(Objective(data), 100.0)
    at_1e30 = np.searchsorted(path.log_t, 30 * np.log(10))
    assert path.ratio[at_1e30] < 0.98
    late = path.residual[at_1e30:]
    assert np.ptp(late) < 1e-2 * late[0]


@settings(max_examples=4)
@given(st.integers(0, 10**6), st.sampled_from([0.4, 1.0, 2.0]))
def test_signed_mixing_flows_to_the_direction_of_erm(seed, alpha):
    """Angle and margin gap fall towards zero along the same solver's direction."""
    data = planted(8, 2, 1.0, 2, np.random.default_rng(seed))
    for objective in (Objective(data), Objective(data, "mixup-signed", alpha)):
        path = gradient_flow(objective, 100.0, times=3)
        np.testing.assert_allclose(path.reference.direction, data.direction, atol=1e-10)
        # Gaps of 1/log² t and 1/log t, log t = 230, with constants of order one.
        assert path.angle_gap[-1] < 2e-3
        assert path.margin_gap[-1] < 0.05


def test_soft_labels_end_at_the_finite_minimiser():
    objective = Objective(load("skewed"), "mixup-soft")
    path = gradient_flow(objective, times=50)
    np.testing.assert_allclose(path.w[-1], minimise(objective).w, atol=1e-10)
    np.testing.assert_allclose(path.w[25:], path.w[-1][None].repeat(25, 0), atol=1e-8)


def test_gd_and_flow_approach_the_solver_direction():
    """1 − cos falls with t for descent, and on to 1e-6 for the flow."""
    objective = Objective(load("skewed"))
    direction = max_margin(objective.data.signed).direction
    w = descend([objective], Recipe(steps=20_000, records=3)).w[:, 0]
    gap = 1.0 - w @ direction / np.linalg.norm(w, axis=1)
    far = gradient_flow(objective, 300.0, times=2)
    assert 0.02 > gap[1] > gap[2] > 100 * far.angle_gap[-1]
    assert far.angle_gap[-1] < 2e-6


def test_impossible_flows_are_refused():
    objective = Objective(load("skewed"))
    for log10_t in (0.0, -1.0, 1e4, float("nan")):
        with pytest.raises(InputError, match="final time"):
            gradient_flow(objective, log10_t)
    with pytest.raises(InputError, match="at least 2"):
        gradient_flow(objective, times=1)
    with pytest.raises(InputError, match="not linearly separable"):
        gradient_flow(Objective(load("moons")))


def test_start_is_used():
    objective = Objective(ToyData("one", np.array([[2.0, 0.0]]), np.ones(1)))
    path = gradient_flow(objective, 3.0, w0=np.array([0.0, 5.0]))
    np.testing.assert_allclose(path.w[:, 1], 5.0)
    # One point on the axis: m' = 4/(1 + e^m), so m + e^m = 1 + 4t exactly.
    m = 2.0 * path.w[:, 0]
    np.testing.assert_allclose(m + np.exp(m), 1.0 + 4.0 * np.exp(path.log_t), rtol=1e-9)
