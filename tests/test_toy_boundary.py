import numpy as np
import pytest
import torch

from theory.errors import InputError
from toy.boundary import TRAININGS, standardise, train_boundary, training_loss
from toy.data import ToyData, load

TRAIN, TEST = standardise(load("moons", n=60), load("moons", seed=1, n=200))


def test_standardise_uses_the_training_set():
    np.testing.assert_allclose(TRAIN.x.mean(0), 0, atol=1e-14)
    np.testing.assert_allclose(TRAIN.x.std(0), 1)
    assert np.abs(TEST.x.mean(0)).max() > 1e-3


@pytest.mark.parametrize("training", TRAININGS)
def test_every_objective_learns_the_moons(training):
    seen = train_boundary(TRAIN, TEST, training, steps=300, side=20)
    assert seen.test_accuracy > 0.93
    assert seen.probability.shape == (20, 20)
    assert 0.0 <= seen.probability.min() < 0.1
    assert 0.9 < seen.probability.max() <= 1.0
    again = train_boundary(TRAIN, TEST, training, steps=300, side=20)
    np.testing.assert_array_equal(seen.probability, again.probability)


def test_mixup_is_less_confident_than_erm():
    """Zhang et al.'s figure: mixing labels keeps P away from 0 and 1 between the classes."""
    erm, mixup = (train_boundary(TRAIN, TEST, t, steps=600, side=20) for t in ("erm", "mixup"))
    assert mixup.confidence < erm.confidence - 0.03


def test_mixupe_is_its_formula():
    """Value |L_mix|, gradient that of η̂ (L_mix + η E[a] mean|q̂|), for a linear model by hand."""
    model = torch.nn.Linear(2, 1).double()
    x = torch.from_numpy(TRAIN.x)
    targets = torch.from_numpy((1 + TRAIN.y[:, None]) / 2)

    def grad(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*model.parameters()])])

    def step(training, eta):
        rng = np.random.default_rng(3)
        return training_loss(model, x, targets, training, 0.7, eta, rng)

    mix, total = step("mixup", 0.0), step("mixupe", 2.0)
    f = model(x)
    penalty = 2.0 * (0.7 / 2.4) * ((targets - f.sigmoid()) * f).abs().mean()
    scale = (mix / (mix + penalty)).detach()
    assert total.item() == pytest.approx(mix.item(), rel=1e-12)
    torch.testing.assert_close(grad(total), scale * (grad(mix) + grad(penalty)))


def test_mixup_with_lambda_one_would_be_erm():
    """At tiny α nearly every λ is 0 or 1 and the step's loss is the clean one, up to order."""
    model = torch.nn.Linear(2, 1).double()
    x, targets = torch.from_numpy(TRAIN.x), torch.from_numpy((1 + TRAIN.y[:, None]) / 2)
    rng = np.random.default_rng(0)
    mixup = training_loss(model, x, targets, "mixup", 1e-4, 0.0, rng)
    erm = training_loss(model, x, targets, "erm", 1e-4, 0.0, rng)
    torch.testing.assert_close(mixup, erm, rtol=1e-9, atol=1e-9)


def test_unusable_settings_are_refused():
    with pytest.raises(InputError, match="boundaries need 2"):
        train_boundary(load("clouds", d=3), TEST, "erm")
    with pytest.raises(InputError, match="constant"):
        standardise(ToyData("flat", np.array([[0.0, 1.0], [0.0, 2.0]]), np.ones(2)), TEST)
    for bad in ({"steps": 0}, {"side": 1}, {"eta": -1.0}, {"eta": np.inf}, {"alpha": 0.0}):
        with pytest.raises(InputError):
            train_boundary(TRAIN, TEST, "mixupe", **bad)
