"""Loss, error and calibration error, against hand-worked cases, a slow loop and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from deep.evaluate import calibration_error, evaluate
from theory.errors import InputError


def linear(features=5, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(features, classes).double()


def examples(samples=301, features=5, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(samples, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (samples,), generator=generator)


def test_calibration_error_of_a_hand_worked_case():
    """0.95 right, 0.94 wrong: one interval, gap |1 − 1.89|; 0.5 right: 0.5; 0.36 wrong: 0.36."""
    confidence = torch.tensor([0.95, 0.94, 0.5, 0.36], dtype=torch.float64)
    hit = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert calibration_error(confidence, hit) == pytest.approx((0.89 + 0.5 + 0.36) / 4)


def test_calibration_error_is_that_of_a_loop_over_intervals():
    generator = np.random.default_rng(0)
    confidence, hit = generator.uniform(0.1, 1, 500), generator.integers(0, 2, 500).astype(float)
    confidence[:3] = [1.0, 2 / 15, 1 / 15]  # ends belong to the interval below
    for bins in (1, 4, 15):
        expected = 0.0
        for k in range(bins):
            inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
            if inside.any():
                gap = abs(hit[inside].mean() - confidence[inside].mean())
                expected += inside.mean() * gap
        found = calibration_error(torch.from_numpy(confidence), torch.from_numpy(hit), bins)
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_means_are_scikit_learns_whatever_the_batch_size(batch_size):
    model, (x, labels) = linear(), examples()
    g = model(x).softmax(1).detach().numpy()
    found = evaluate(model, x, labels, batch_size=batch_size)
    assert found.loss == pytest.approx(log_loss(labels, g), rel=1e-12)
    assert found.error == pytest.approx(1 - accuracy_score(labels, g.argmax(1)), rel=1e-12)


def test_single_sigmoid_logit_has_two_classes():
    """σ(2) = 0.881 right, σ(−1) means class 1's 0.269, so class 0 with 0.731: wrong."""
    model = nn.Identity()
    found = evaluate(
        model, torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1]), head="sigmoid"
    )  # fmt: skip
    right, wrong = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))
    assert found.error == 0.5
    assert found.loss == pytest.approx((-np.log(right) - np.log(1 - wrong)) / 2, rel=1e-6)
    assert found.calibration_error == pytest.approx((1 - right + wrong) / 2, rel=1e-6)


def test_model_is_left_in_train_mode_without_gradients_or_new_statistics():
    model = nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)
    ).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, labels = examples()
    first, second = (evaluate(model, x, labels) for _ in range(2))
    assert first == second
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_named():
    model, (x, labels) = linear(), examples()
    with pytest.raises(InputError, match="no examples"):
        evaluate(model, x[:0], labels[:0])
    with pytest.raises(InputError, match="labels run from"):
        evaluate(model, x, labels + 1)
