"""Rademacher complexities of linear classes against brute force, closed forms and bounds."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from theory import InputError
from theory.glm import FAMILIES, Population, synthetic
from theory.rademacher import (
    QHatClass,
    ball_bound,
    ball_complexity,
    ball_support,
    largest_bump,
    mean_and_sem,
    sampled_signed_sums,
    signed_sums,
)


def rows(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


def exact(x, xi):
    ones = torch.ones(len(x), dtype=torch.long)
    return ball_complexity(x, ones, xi, 1, np.random.default_rng(0))


def test_enumeration_is_brute_force():
    """The supremum over the ball, by hand, for each of 2⁷ signs."""
    x, xi = rows(7, 3), 2.5
    total = 0.0
    for signs in itertools.product((-1, 1), repeat=7):
        v = sum(s * row for s, row in zip(signs, x.numpy(), strict=True))
        theta = math.sqrt(xi) * v / np.linalg.norm(v)
        total += theta @ v / 7 / 2**7
    assert exact(x, xi) == (pytest.approx(total, rel=1e-12), 0.0)


def test_closed_forms():
    """n = 1: √ξ ‖x‖. Orthonormal rows: √(ξ/n). n copies of x: √ξ ‖x‖ E|Σε|/n."""
    x = rows(1, 4)
    assert exact(x, 3.0)[0] == pytest.approx(math.sqrt(3) * float(x.norm()))
    assert exact(torch.eye(6, dtype=torch.float64), 2.0)[0] == pytest.approx(math.sqrt(2 / 6))
    heads = np.arange(11)
    mean = (special.comb(10, heads) * np.abs(2 * heads - 10)).sum() / 2**10
    found, _ = ball_complexity(x, torch.tensor([10]), 1.0, 1, np.random.default_rng(0))
    assert found == pytest.approx(float(x.norm()) * mean / 10)


def test_sampled_signs_agree_with_all_signs_within_their_error():
    """4 standard errors; repeated points are counted, not listed."""
    x = rows(4, 3)
    counts = torch.tensor([1, 5, 2, 3])
    truth, _ = ball_complexity(x, counts, 1.0, 1, np.random.default_rng(0))
    sums = sampled_signed_sums(x, counts, 4000, np.random.default_rng(1))
    mean, sem = mean_and_sem(ball_support(sums, 1.0), 11)
    assert abs(mean - truth) < 4 * sem
    assert sem < 0.02 * truth
    listed = ball_support(signed_sums(x.repeat_interleave(counts, 0)), 1.0) / 11
    assert sem == pytest.approx(float(listed.std()) / math.sqrt(4000), rel=0.1)


@settings(max_examples=40)
@given(n=st.integers(1, 9), d=st.integers(1, 5), xi=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_exact_complexity_is_below_the_talks_bound(n, d, xi, seed):
    """E‖Σεx‖ ≤ √(Σ‖x‖²) ≤ √(n𝒳), and by Khintchine's inequality at least 1/√2 of the middle."""
    x = rows(n, d, seed)
    found, _ = exact(x, xi)
    assert found <= ball_bound(n, xi, float((x**2).sum(1).max())) * (1 + 1e-12)
    assert found >= math.sqrt(xi / 2) * float(x.norm()) / n * (1 - 1e-12)


def test_too_many_signs_are_refused():
    with pytest.raises(InputError, match="too many"):
        signed_sums(rows(17, 1))


def test_bumps_have_their_closed_forms():
    """y²/4 (linear), max u/(1+e^u) (logistic), 1/e (poisson, y = 0)."""
    assert largest_bump(FAMILIES["linear"], -1.0, 3.0) == pytest.approx(9 / 4)
    peak = float(special.lambertw(1 / math.e).real)  # max of u σ(−u)
    assert largest_bump(FAMILIES["logistic"], 0.0, 1.0) == pytest.approx(peak)
    assert largest_bump(FAMILIES["poisson"], 0.0, 0.0) == pytest.approx(1 / math.e)
    assert largest_bump(FAMILIES["poisson"], 1.0, 1.0) == 0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_ends_of_the_class_are_where_q_hat_reaches_gamma(family):
    """By Brent's method from outside, for each label alone."""
    labels = [0.0, 1.0] if family.name == "logistic" else [0.0, 1.0, 3.0]
    gamma = largest_bump(family, min(labels), max(labels)) + 0.4
    for y in labels:
        one = torch.ones(1, 1, dtype=torch.float64)
        theta = QHatClass.of(Population(family, one, y * one, one), gamma, 1e3)

        def excess(u, y=y):
            return abs((y - float(family.mean(torch.tensor(u, dtype=torch.float64)))) * u) - gamma

        for end, far in ((float(theta.low), -60.0), (float(theta.high), 60.0)):
            if math.isinf(end):
                assert excess(far) < 0
            else:
                inner = float(family.target(torch.tensor(y, dtype=torch.float64)).clamp(-9, 9))
                start = min(inner, 0.0) if far < 0 else max(inner, 0.0)
                root = optimize.brentq(excess, start, far, xtol=1e-13)
                assert end == pytest.approx(root, rel=1e-9)


@pytest.mark.parametrize("gap", [0.1, 1e-6, 1e-12])
def test_labels_near_the_rim_leave_a_wide_class(gap):
    """Far out |q̂| is the gap to the rim times |u|, so that the class ends at γ over the gap."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for name, y, end in (("logistic", 1 - gap, "high"), ("logistic", gap, "low"),
                         ("poisson", gap, "low")):  # fmt: skip
        data = Population(FAMILIES[name], one, y * one, one)
        found = float(getattr(QHatClass.of(data, 1.0, 10.0), end))
        assert abs(float(data.q_hat(torch.tensor([found]).double()))) == pytest.approx(1.0)
        assert abs(found) == pytest.approx(1 / gap, rel=1e-2 if gap == 0.1 else 1e-3)


def test_beyond_every_number_only_the_box_bounds_the_class():
    one = torch.ones(1, 1, dtype=torch.float64)
    data = Population(FAMILIES["poisson"], one, 1e-320 * one, one)
    theta = QHatClass.of(data, 1.0, 10.0)
    assert float(theta.low) == -math.inf
    assert float(theta.maximiser(-one[0])) == -10


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_linear_program_stays_in_the_class_and_beats_every_member(family):
    data = synthetic(family, 2, 15, 1.0, np.random.default_rng(0))
    gamma = 1.1 * largest_bump(family, float(data.y.min()), float(data.y.max()))
    theta = QHatClass.of(data, gamma, 50.0)
    candidates = torch.from_numpy(np.random.default_rng(1).normal(0, 3, size=(3000, 2)))
    members = [c for c in candidates if float(data.q_hat(c)[data.p > 0].abs().max()) <= gamma]
    assert len(members) > 20
    for v in rows(5, 2, seed=2):
        best = theta.maximiser(v)
        assert float(data.q_hat(best)[data.p > 0].abs().max()) <= gamma * (1 + 1e-7)
        assert float(best @ v) >= max(float(m @ v) for m in members)


def test_stated_complexity_fails_on_a_point_with_both_labels():
    """x = 1, n = 1: the class is |θ| ≤ v with σ(v) v = γ, so ℛ = v ≥ γ, but γ/(1 + L_A) is claimed.

    L_A ≥ σ(0) = 1/2 for every class, so the claim is at most γ/1.5.
    """
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    labels = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    theta = QHatClass.of(Population(FAMILIES["logistic"], one, labels, half), 1.0, 1e3)
    complexity = float(theta.support(signed_sums(one)).mean())
    v = optimize.brentq(lambda u: u * special.expit(u) - 1.0, 0, 5)
    assert complexity == pytest.approx(v, rel=1e-9)
    assert complexity > 1.0 > 1.0 / 1.5


def test_on_separable_points_only_the_box_bounds_the_class():
    """γ stays and ℛ grows with the box: sup |q̂| ≤ γ bounds no ‖θ‖."""
    x = torch.tensor([[1.0], [2.0], [-1.5]], dtype=torch.float64)
    y = (x > 0).to(x.dtype)
    data = Population(FAMILIES["logistic"], x, y, torch.full_like(y, 1 / 3))
    large = torch.tensor([40.0], dtype=torch.float64)
    assert float(data.q_hat(large).abs().max()) < 1e-15
    sizes = [
        float(QHatClass.of(data, 0.3, box).support(signed_sums(x)).mean()) for box in (1, 10, 100)
    ]
    assert sizes[1] > 5 * sizes[0]
    assert sizes[2] > 9 * sizes[1]


def test_a_class_that_is_not_convex_is_refused():
    data = synthetic(FAMILIES["logistic"], 2, 5, 1.0, np.random.default_rng(0))
    with pytest.raises(InputError, match="convex"):
        QHatClass.of(data, 0.1, 10.0)
