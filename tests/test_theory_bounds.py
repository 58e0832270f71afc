"""Constants of Theorem 2 against grids and exhaustive replacement; terms by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from theory import InputError
from theory.bounds import CHOICES, Constants, estimate_constants, repaired_terms, theorem_terms
from theory.glm import FAMILIES, Mixing, Population, synthetic

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
BY_HAND = Constants(
    lipschitz=1.0, gamma=0.5, squared_norm=4.0, max_logit=3.0, xi=9.0, slope=0.8,
    loss_range=2.0, mcdiarmid=3.0,
)  # fmt: skip


def constants_of(population, thetas, eta=0.3, n=7):
    return estimate_constants(population, thetas, population.p > 0, Mixing(), eta, n)


@every_family
def test_constants_are_the_extremes_on_a_grid(family):
    """A dense grid over |u| ≤ U and the labels never exceeds them, and comes close."""
    population = synthetic(family, 2, 12, 1.0, np.random.default_rng(0))
    thetas = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2)))
    found = constants_of(population, thetas)
    u_at = population.x.numpy() @ thetas.numpy().T
    assert found.max_logit == pytest.approx(np.abs(u_at).max())
    assert found.xi == pytest.approx((thetas.numpy() ** 2).sum(1).max())
    assert found.squared_norm == pytest.approx((population.x.numpy() ** 2).sum(1).max())
    u = np.linspace(-found.max_logit, found.max_logit, 4001)[:, None]
    y = np.linspace(float(population.y.min()), float(population.y.max()), 41)
    a = {"logistic": np.logaddexp(0, u), "linear": u * u / 2, "poisson": np.exp(u)}[family.name]
    g = {"logistic": 1 / (1 + np.exp(-u)), "linear": u, "poisson": np.exp(u)}[family.name]
    assert found.lipschitz == pytest.approx(np.abs(g).max())
    assert found.slope == pytest.approx(np.abs(g - y).max())
    loss = a - y * u
    assert found.loss_range == pytest.approx(loss.max() - loss.min(), rel=1e-5)
    assert found.loss_range >= loss.max() - loss.min() - 1e-12
    g_at = family.mean(torch.from_numpy(u_at)).numpy()
    q_hat = (population.y.numpy()[:, :, None] - g_at[:, None]) * u_at[:, None]
    assert found.gamma == pytest.approx(np.abs(q_hat).max())


@every_family
def test_one_example_never_changes_the_objective_by_more_than_b_over_n(family):
    """Every replacement of one example in random samples of 7."""
    population = synthetic(family, 2, 6, 1.0, np.random.default_rng(0))
    theta, mixing, eta = torch.tensor([1.2, -2.0], dtype=torch.float64), Mixing(), 0.3
    b = constants_of(population, theta[None], eta).mcdiarmid
    rng, cells, largest = np.random.default_rng(2), population.p.numel(), 0.0

    def objective(sample):
        w = np.bincount(sample, minlength=cells).reshape(population.p.shape) / 7
        w = torch.from_numpy(w)
        l_mix = population.mixup_risk(theta, w, mixing)
        return float(l_mix + eta * population.penalty(theta, w, mixing))

    for _ in range(4):
        sample = rng.integers(cells, size=7)
        before = objective(sample)
        for cell in range(cells):
            sample[0] = cell
            largest = max(largest, abs(objective(sample) - before))
    assert b / 7 / 10 < largest <= b / 7


def test_terms_by_hand():
    """n = 4, δ = e^−8: √(log(1/δ)/2n) = 1."""
    theorem = theorem_terms(BY_HAND, 0.6, 0.5, eta=2.0, n=4, delta=math.exp(-8))
    assert theorem.risk == pytest.approx(0.3)
    assert theorem.complexity == pytest.approx(2 * 0.5 * 2 * 1 * 0.5 * 4 / (2 * 2))
    assert theorem.confidence == pytest.approx(3.0)
    assert theorem.total == pytest.approx(0.3 + 1.0 + 3.0)
    repaired = repaired_terms(BY_HAND, 0.6, n=4, delta=math.exp(-8))
    rate = 1 / 8 + 3 / 4 / math.sqrt(2)
    assert repaired.complexity == pytest.approx(2 * 0.8 * 6 * rate)
    assert repaired.confidence == pytest.approx((2 - 1 / 4) * 2)


def test_the_theorems_term_depends_on_the_unit_of_x_and_nothing_else_does():
    """x → 3x, θ → θ/3: q̂, risks and the repaired bound stay, the theorem's term is nine times."""
    population = synthetic(FAMILIES["logistic"], 2, 12, 2.0, np.random.default_rng(0))
    other = replace(population, x=3 * population.x)
    thetas = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2)))
    a, b = constants_of(population, thetas), constants_of(other, thetas / 3)
    for name in ("lipschitz", "gamma", "max_logit", "slope", "loss_range", "mcdiarmid"):
        assert getattr(a, name) == pytest.approx(getattr(b, name))
    terms = [theorem_terms(c, 0.5, 0.9, 0.1, 50, 0.05) for c in (a, b)]
    assert terms[1].complexity == pytest.approx(9 * terms[0].complexity)
    repaired = [repaired_terms(c, 0.5, 50, 0.05) for c in (a, b)]
    assert repaired[1].total == pytest.approx(repaired[0].total)


@every_family
def test_repaired_complexity_bounds_the_expected_supremum(family):
    """E max over 50 θ of E L_mix − L_mix, at n = 8, is positive and below the term."""
    population = synthetic(family, 2, 8, 1.0, np.random.default_rng(0))
    rng, mixing, n = np.random.default_rng(3), Mixing(), 8
    directions = rng.normal(size=(50, 2))
    thetas = torch.from_numpy(directions / np.linalg.norm(directions, axis=1)[:, None])
    expected = [population.expected_mixup_risk(theta, n, mixing) for theta in thetas]
    suprema = []
    for _ in range(20):
        w = population.draw(n, rng)
        values = [float(population.mixup_risk(theta, w, mixing)) for theta in thetas]
        suprema.append(max(e - v for e, v in zip(expected, values, strict=True)))
    term = repaired_terms(constants_of(population, thetas, n=n), 0.0, n, 0.5).complexity
    assert 0 < np.mean(suprema) + 4 * np.std(suprema) / math.sqrt(20) < term


def test_constants_of_a_part_see_that_part_only():
    x = torch.tensor([[1.0], [5.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [7.0]], dtype=torch.float64)
    population = Population(FAMILIES["linear"], x, y, torch.full_like(y, 0.5))
    seen = torch.tensor([[True], [False]])
    found = estimate_constants(population, x.new_ones(1, 1), seen, Mixing(), 0.0, 5)
    assert (found.squared_norm, found.max_logit, found.gamma) == (1.0, 1.0, 1.0)


def test_every_constant_has_its_choice_named():
    assert set(CHOICES) == set(BY_HAND.__dataclass_fields__)


@pytest.mark.parametrize(("n", "delta"), [(5, 0.0), (5, 1.0), (5, math.nan), (1, 0.1)])
def test_meaningless_delta_and_n_are_refused(n, delta):
    with pytest.raises(InputError):
        theorem_terms(BY_HAND, 0.5, 1.0, 0.1, n, delta)
    with pytest.raises(InputError):
        repaired_terms(BY_HAND, 0.5, n, delta)
