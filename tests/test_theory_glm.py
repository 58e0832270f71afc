"""GLMs on a finite population: losses, L_mix by quadrature, expectations by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import brute_mixup_risk, expectation
from scipy import special, stats

from theory import InputError
from theory.glm import FAMILIES, Mixing, Population, family_named, synthetic, train
from toy.data import load
from toy.minimiser import minimise
from toy.objective import Objective

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def population_of(family, x, y):
    """The empirical distribution of a sample."""
    x = torch.as_tensor(np.asarray(x), dtype=torch.float64)
    y = torch.as_tensor(np.asarray(y), dtype=torch.float64)[:, None]
    return Population(family, x, y, torch.full_like(y, 1 / len(y)))


def drawn(family, n=5, d=3, seed=0):
    rng = np.random.default_rng(seed)
    y = {"logistic": rng.integers(0, 2, n), "linear": rng.normal(size=n)}
    return population_of(family, rng.normal(size=(n, d)), y.get(family.name, rng.poisson(2, n)))


THETA = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)


@every_family
def test_loss_is_the_negative_log_likelihood_up_to_terms_in_y(family):
    """Against scipy.stats; the dropped terms are 0, y²/2 + log √(2π), log y!."""
    for u, y in itertools.product((-3.0, -0.5, 0.0, 2.0), (0.0, 1.0)):
        one = population_of(family, [[1.0]], [y])
        loss = float(one.risk(torch.tensor([u], dtype=torch.float64), one.p))
        expected = {
            "logistic": lambda u=u, y=y: -stats.bernoulli.logpmf(y, special.expit(u)),
            "linear": lambda u=u, y=y: (
                -stats.norm.logpdf(y, u) - y * y / 2 - math.log(2 * math.pi) / 2
            ),
            "poisson": lambda u=u, y=y: (
                -stats.poisson.logpmf(y, math.exp(u)) - special.gammaln(y + 1)
            ),
        }[family.name]()
        assert loss == pytest.approx(expected, abs=1e-12)


@every_family
def test_mean_is_the_slope_of_the_log_partition_and_target_its_inverse(family):
    u = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(family.log_partition(u).sum(), u)
    torch.testing.assert_close(family.mean(u), slope)
    torch.testing.assert_close(family.target(family.mean(u)), u)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
@every_family
def test_mixup_risk_is_the_double_loop(family, alpha):
    """All ordered pairs, inputs and labels mixed, λ by adaptive integration."""
    data = drawn(family)
    x, y = data.x.numpy() @ THETA.numpy(), data.y.numpy()[:, 0]
    total = 0.0
    for i, j in itertools.product(range(5), repeat=2):

        def loss(lam, i=i, j=j):
            u, label = lam * x[i] + (1 - lam) * x[j], lam * y[i] + (1 - lam) * y[j]
            partition = {"logistic": np.logaddexp(0, u), "linear": u * u / 2, "poisson": np.exp(u)}
            return partition[family.name] - label * u

        total += expectation(loss, alpha, alpha) / 25
    found = float(data.mixup_risk(THETA, data.p, Mixing(alpha, 24)))
    assert found == pytest.approx(total, rel=1e-9)


def test_logistic_mixup_risk_is_that_of_the_network_oracle():
    data = drawn(FAMILIES["logistic"], n=4)
    oracle = brute_mixup_risk(lambda z: z @ THETA[:, None], data.x, data.y, 0.7, 0.7, "sigmoid")
    found = float(data.mixup_risk(THETA, data.p, Mixing(0.7, 24)))
    assert found == pytest.approx(oracle.mean(), rel=1e-9)


@every_family
def test_penalty_is_its_formula(family):
    """R = α/(2α+1) mean |(y − A'(u)) u|."""
    data = drawn(family)
    u, y = data.x.numpy() @ THETA.numpy(), data.y.numpy()[:, 0]
    g = {"logistic": special.expit(u), "linear": u, "poisson": np.exp(u)}[family.name]
    expected = 2 / 5 * np.abs((y - g) * u).mean()
    assert float(data.penalty(THETA, data.p, Mixing(2.0))) == pytest.approx(expected, rel=1e-12)


@every_family
def test_expected_mixup_risk_is_the_mean_over_all_samples(family):
    """Every sample of 3 from 5 cells, with its probability."""
    data, mixing = drawn(family), Mixing(1.0)
    total = 0.0
    for sample in itertools.product(range(5), repeat=3):
        w = torch.zeros(5, 1, dtype=torch.float64)
        for k in sample:
            w[k] += 1 / 3
        total += float(data.mixup_risk(THETA, w, mixing)) / 5**3
    assert data.expected_mixup_risk(THETA, 3, mixing) == pytest.approx(total, rel=1e-12)


def test_training_finds_newtons_minimiser():
    """L-BFGS on L_mix against the toy's Newton method, which has its own quadrature."""
    data = load("clouds", n=30, d=3, margin=0.5)
    answer = minimise(Objective(data, "mixup-soft", 1.0))
    ours = population_of(FAMILIES["logistic"], data.x, (data.y + 1) / 2)
    theta = train(ours, ours.p, Mixing(1.0, 32), eta=0.0, box=100.0)
    np.testing.assert_allclose(theta.numpy(), answer.w, rtol=2e-4)
    assert float(ours.mixup_risk(theta, ours.p, Mixing(1.0, 32))) == pytest.approx(
        answer.loss, rel=1e-9
    )


@every_family
def test_training_lowers_the_penalised_objective_and_stays_in_the_box(family):
    data, mixing = drawn(family, n=12), Mixing()
    theta = train(data, data.p, mixing, eta=0.5, box=0.3)
    assert float(theta.abs().max()) <= 0.3

    def total(point):
        return float(
            data.mixup_risk(point, data.p, mixing) + 0.5 * data.penalty(point, data.p, mixing)
        )

    for step in torch.eye(3, dtype=torch.float64):
        for sign in (-1, 1):
            other = (theta + sign * 1e-3 * step).clamp(-0.3, 0.3)
            assert total(other) >= total(theta) - 1e-9


@every_family
def test_synthetic_labels_follow_the_family_at_one_theta(family):
    """E[y | x] = A'(u) with u linear in x, and the family's variance."""
    data = synthetic(family, 3, 20, 1.5, np.random.default_rng(0))
    share = data.p / data.p.sum(1, keepdim=True)
    mean = (share * data.y).sum(1)
    u = family.target(mean)
    fitted = data.x @ torch.linalg.lstsq(data.x, u[:, None]).solution
    torch.testing.assert_close(fitted[:, 0], u, atol=1e-6, rtol=0)
    variance = (share * (data.y - mean[:, None]) ** 2).sum(1)
    expected = {"logistic": mean * (1 - mean), "linear": torch.full_like(mean, 0.25)}
    torch.testing.assert_close(variance, expected.get(family.name, mean), atol=1e-6, rtol=0)
    assert float(data.x.norm(dim=1).max()) <= 1


def test_draws_are_frequencies_with_the_populations_mean():
    data = synthetic(FAMILIES["logistic"], 2, 6, 1.0, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    draws = torch.stack([data.draw(50, rng) for _ in range(2000)])
    torch.testing.assert_close(draws.sum((1, 2)), torch.ones(2000, dtype=torch.float64))
    error = (draws.mean(0) - data.p) / (draws.std(0) / math.sqrt(2000))
    assert float(error.abs().max()) < 4.5


@pytest.mark.parametrize(
    ("family", "x", "y", "complaint"),
    [
        ("poisson", [[1.0], [2.0]], [1.0, -1.0], "must lie in"),
        ("logistic", [[1.0], [2.0]], [1.0, 2.0], "must lie in"),
        ("linear", [[1.0], [math.nan]], [1.0, 2.0], "NaN"),
        ("linear", [[1.0], [2.0]], [1.0, math.inf], "NaN or infinite"),
    ],
)
def test_unusable_data_are_refused(family, x, y, complaint):
    with pytest.raises(InputError, match=complaint):
        population_of(FAMILIES[family], x, y)


def test_probabilities_must_be_such():
    one = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="sum to one"):
        Population(FAMILIES["linear"], one, one, one)


def test_other_bad_arguments_are_refused():
    with pytest.raises(InputError, match="unknown family"):
        family_named("gamma")
    for n in (1, 10**16):
        with pytest.raises(InputError, match="cannot be drawn"):
            drawn(FAMILIES["linear"]).draw(n, np.random.default_rng(0))
