import clarabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.max_margin import max_margin, separability
from toy.objective import Objective


def interior_point(z):
    """The same problem by a different method: clarabel's interior-point solver."""
    n, d = z.shape
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = 1e-13
    solver = clarabel.DefaultSolver(
        sparse.identity(d, format="csc"),
        np.zeros(d),
        sparse.csc_matrix(-z),
        -np.ones(n),
        [clarabel.NonnegativeConeT(n)],
        options,
    )
    return np.array(solver.solve().x)


def test_two_points():
    """Opposite corners of the margin: ŵ is the foot of the perpendicular from 0 to the segment."""
    answer = max_margin(np.array([[1.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(answer.direction, np.array([2.0, 1.0]) / np.sqrt(5.0), atol=1e-14)
    assert answer.margin == pytest.approx(2.0 / np.sqrt(5.0), rel=1e-14)
    # ŵ = (1, 1/2) = a (1, 0) + b (0, 2)
    np.testing.assert_allclose(answer.duals, [1.0, 0.25], atol=1e-13)


def test_three_points_of_which_one_is_no_support_vector():
    answer = max_margin(np.array([[3.0, 1.0], [1.0, 0.0], [0.5, 4.0]]))
    # The line through the last two points has normal (8, 1); its distance to 0 is 8/√65.
    np.testing.assert_allclose(answer.direction, np.array([8.0, 1.0]) / np.sqrt(65.0), atol=1e-14)
    assert answer.margin == pytest.approx(8.0 / np.sqrt(65.0), rel=1e-14)
    assert answer.support.tolist() == [False, True, True]


def test_a_single_support_vector_is_its_own_direction():
    answer = max_margin(np.array([[3.0, 4.0], [6.0, 9.0], [9.0, 8.0]]))
    np.testing.assert_allclose(answer.direction, [0.6, 0.8], atol=1e-14)
    assert answer.margin == pytest.approx(5.0, rel=1e-14)


@pytest.mark.parametrize(("n", "d", "supports"), [(30, 2, 2), (60, 10, 4), (200, 30, 30)])
def test_agrees_with_an_interior_point_solver_and_the_optimality_conditions(n, d, supports):
    data = planted(n, d, 0.3, supports, np.random.default_rng(n))
    answer = max_margin(data.signed)
    np.testing.assert_allclose(answer.w, interior_point(data.signed), rtol=0, atol=1e-8)
    assert answer.kkt < 1e-10
    assert answer.duals.sum() == pytest.approx(answer.margin**-2, rel=1e-10)


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_real_sets_are_separable_with_tiny_residuals(name):
    """Breast cancer, often called nearly separable, is separable with all 30 features."""
    data = load(name)
    assert separability(data.signed).separable
    answer = max_margin(data.signed)
    assert answer.kkt < 1e-10
    w = interior_point(data.signed / answer.margin) / answer.margin
    assert np.linalg.norm(answer.w - w) / np.linalg.norm(w) < 1e-6


@pytest.mark.parametrize("name", ["moons", "rings"])
def test_non_separable_sets_come_with_a_certificate(name):
    data = load(name, n=100)
    verdict = separability(data.signed)
    assert not verdict.separable
    assert (verdict.weights >= 0).all()
    assert verdict.weights.sum() == pytest.approx(1.0)
    assert np.abs(verdict.weights @ data.signed).max() < 1e-12
    with pytest.raises(InputError, match="not linearly separable"):
        max_margin(data.signed)


def test_zero_points_are_refused():
    with pytest.raises(InputError, match="zero"):
        separability(np.zeros((3, 2)))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.37, 0.5]))
def test_signed_mixing_keeps_the_max_margin_direction(seed, d, lam):
    """Mixed points z̃ lie in the hull of the z and the diagonal keeps every z: same solution.

    Mixing is done on the set that the objective sees, by its own pairs.
    """
    rng = np.random.default_rng(seed)
    u = rng.standard_normal(d)
    u /= np.linalg.norm(u)
    z = rng.standard_normal((12, d))
    z += np.outer(0.05 + np.abs(z @ u) - z @ u, u)
    points = Objective(ToyData("random", z, np.ones(12)), "mixup-signed").points
    mixed = lam * points[:, None] + (1 - lam) * points
    plain, other = max_margin(z), max_margin(mixed.reshape(-1, d))
    np.testing.assert_allclose(other.direction, plain.direction, atol=1e-10)
    assert other.margin == pytest.approx(plain.margin, rel=1e-10)
