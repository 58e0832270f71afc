import numpy as np
import pytest
import torch

from theory.errors import InputError
from toy.data import load
from toy.homogeneous import log_objective, mixtures, network, train_relu

MOONS = load("moons", n=12)


def theta_of(seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((7, 4))


def test_the_network_is_two_homogeneous():
    theta = theta_of(0)
    np.testing.assert_allclose(
        network(3.0 * theta, MOONS.x), 9.0 * network(theta, MOONS.x), rtol=1e-13
    )


@pytest.mark.parametrize("scale", [0.5, 20.0])
@pytest.mark.parametrize("hard", [True, False])
def test_gradient_is_that_of_autograd(hard, scale):
    """Torch's automatic derivative of the definition, at losses that float64 still holds."""
    sample = mixtures(MOONS, 0.6, 5)
    if hard:
        targets = np.round(sample.targets)
        sample = type(sample)(sample.x, targets, sample.weights)
    theta = theta_of(1, scale)
    value, gradient = log_objective(theta, sample)
    free = torch.from_numpy(theta).requires_grad_()
    x, t, weights = (torch.from_numpy(v) for v in (sample.x, sample.targets, sample.weights))
    f = torch.relu(x @ free[:, :-2].T + free[:, -2]) @ free[:, -1]
    risk = (weights * (torch.logaddexp(f, torch.zeros_like(f)) - t * f)).sum()
    (slope,) = torch.autograd.grad(risk.log(), free)
    assert value == pytest.approx(risk.log().item(), rel=1e-12)
    np.testing.assert_allclose(gradient, slope.numpy(), rtol=1e-9, atol=1e-11)


def test_mixtures_are_all_pairs_in_distribution():
    """Weights sum to one and reproduce the mean and the mixed second moment of E[x̃ x̃ᵀ]."""
    sample = mixtures(MOONS, 0.8, 4)
    assert sample.weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(sample.weights @ sample.x, MOONS.x.mean(0), atol=1e-14)
    square = (0.8 + 1.0) / (2.0 * (2 * 0.8 + 1.0))  # E[λ²] of Beta(α, α)
    own, mean = MOONS.x.T @ MOONS.x / 12, MOONS.x.mean(0)
    expected = 2 * square * own + 2 * (0.5 - square) * np.outer(mean, mean)
    np.testing.assert_allclose((sample.x.T * sample.weights) @ sample.x, expected, atol=1e-13)


def test_erm_never_lowers_the_smoothed_margin_once_it_fits():
    """Lyu and Li's theorem, on rings where steps of the flow's size cross no kink badly."""
    path = train_relu(load("rings", n=30), steps=8000, pace=0.5)
    fits = path.log_loss < np.log(np.log(2.0) / 30)
    assert fits.sum() > 100
    assert (np.diff(path.smoothed[fits]) > 0.0).all()
    assert path.log_loss[-1] < -8.0
    assert path.margin[-1] > 0.01
    # The smoothed margin approaches the margin as the norm grows.
    ahead = path.margin[fits] - path.smoothed[fits]
    assert 0.0 < ahead[-1] < 0.3 * path.margin[-1]
    assert ahead[-1] < 0.5 * ahead[0]


def test_loss_below_the_smallest_float_is_still_followed():
    path = train_relu(load("rings", n=30), steps=60_000, pace=8.0)
    assert path.log_loss[-1] < -300.0 * np.log(10.0)
    assert np.isfinite(path.norm).all()
    np.testing.assert_allclose(
        path.log_loss[-20:] + path.margin[-20:] * path.norm[-20:] ** 2, 0, atol=5
    )


def test_soft_labels_keep_the_norm_and_the_loss_finite():
    path = train_relu(MOONS, "mixup-soft", steps=1500, pace=1.0)
    assert path.log_loss[-1] > np.log(0.1)
    assert path.norm[-1] < 15.0


def test_the_recorded_slope_is_that_of_the_loss():
    """One step of plain descent lowers L by step × ‖∇L‖², to first order in a tiny step."""
    path = train_relu(MOONS, steps=200, pace=1e-6)
    step = np.exp(np.log(1e-6) - 2 * np.log(path.norm[:-1]) - path.log_loss[:-1])
    fall = -np.diff(np.exp(path.log_loss))
    np.testing.assert_allclose(fall, step * np.exp(2 * path.log_slope[:-1]), rtol=1e-3)


def test_bad_settings_are_refused():
    for bad in ({"width": 0}, {"steps": 0}, {"pace": 0.0}, {"nodes": 0}):
        with pytest.raises(InputError):
            train_relu(MOONS, **bad)
    with pytest.raises(InputError, match="alpha"):
        train_relu(MOONS, "mixup-soft", -1.0)
