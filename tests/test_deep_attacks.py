"""The attacks find the worst case where it is known, and stay inside their ball."""

import numpy as np
import pytest
import torch
from torch import nn

from deep.attacks import fgsm, pgd
from deep.models import build_model
from theory.errors import InputError

MEAN, STD = torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.3])
ATTACKS = {
    "fgsm": lambda *args, **kw: fgsm(*args, mean=MEAN, std=STD, **kw),
    "pgd": lambda *args, **kw: pgd(*args, mean=MEAN, std=STD, step_size=0.01, steps=20, **kw),
}


def normalised(pixels):
    return (pixels - MEAN.to(pixels)[:, None, None]) / STD.to(pixels)[:, None, None]


def in_pixels(x):
    return x * STD.to(x)[:, None, None] + MEAN.to(x)[:, None, None]


def images(samples=12, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(samples, 2, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (samples,), generator=generator)
    return low + (high - low) * pixels, labels


def linear_model():
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double()


@pytest.mark.parametrize("name", ATTACKS)
def test_worst_case_of_a_linear_margin(name):
    """In the ball of radius ε the margin wᵀp + b falls by ε‖w‖₁, w being that of pixel units."""
    model, (pixels, labels), epsilon = linear_model(), images(low=0.1, high=0.9), 0.05
    x = normalised(pixels)
    signs = (2 * labels - 1).double()

    def margins(inputs):
        logits = model(inputs).detach()
        return signs * (logits[:, 1] - logits[:, 0])

    w = (model[1].weight[1] - model[1].weight[0]).detach().view(2, 4, 4) / STD[:, None, None]
    fall = margins(x) - margins(ATTACKS[name](model, x, labels, epsilon=epsilon))
    np.testing.assert_allclose(fall, epsilon * w.abs().sum().item(), rtol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
def test_worst_case_of_a_linear_margin_within_the_range_of_pixels(name):
    """Against linear programming by hand: each pixel at the bad end of its own interval."""
    model, (pixels, labels), epsilon = linear_model(), images(), 0.08
    attacked = in_pixels(ATTACKS[name](model, normalised(pixels), labels, epsilon=epsilon))
    weight = (model[1].weight[1] - model[1].weight[0]).detach().view(2, 4, 4)
    for image, label, found in zip(pixels, labels, attacked, strict=True):
        up = (weight > 0) ^ bool(label)
        worst = torch.where(up, (image + epsilon).clamp(max=1), (image - epsilon).clamp(min=0))
        np.testing.assert_allclose(found, worst, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_stays_in_the_ball_and_in_the_range_and_leaves_the_model(steps):
    torch.manual_seed(0)
    model = build_model("preact18", num_classes=2, in_channels=2, image_size=8, width=4)
    pixels = torch.rand(6, 2, 8, 8).round(decimals=1)
    labels, before = torch.arange(6) % 2, {k: v.clone() for k, v in model.state_dict().items()}
    found = pgd(model, normalised(pixels), labels, mean=MEAN, std=STD, epsilon=0.1, steps=steps,
                step_size=0.07)  # fmt: skip
    moved = in_pixels(found)
    assert (moved - pixels).abs().max() <= 0.1 + 1e-6
    assert -1e-6 <= moved.min() <= moved.max() <= 1 + 1e-6
    assert (moved - pixels).abs().max() > 0.09
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_start_does_not_depend_on_batches_and_fills_the_cube():
    """A model whose gradient is zero shows the start itself: uniform on [−ε, ε]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double()
    nn.init.zeros_(model[1].weight)
    pixels = torch.full((60, 2, 4, 4), 0.5, dtype=torch.float64)
    labels = torch.zeros(60, dtype=torch.int64)
    whole, parts, other = (
        pgd(model, normalised(pixels), labels, mean=MEAN, std=STD, epsilon=0.2, batch_size=size,
            seed=seed)
        for size, seed in ((60, 0), (7, 0), (60, 1))
    )  # fmt: skip
    assert torch.equal(whole, parts)
    assert not torch.allclose(whole, other, atol=1e-3)
    start = (in_pixels(whole) - 0.5) / 0.2
    assert -1 <= start.min() < -0.99 < 0.99 < start.max() <= 1
    assert abs(start.mean()) < 0.06  # four standard errors
    assert start.var().item() == pytest.approx(1 / 3, rel=0.1)


def test_more_steps_find_worse_cases_of_a_bent_network():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    pixels, labels = images(40)
    x = normalised(pixels)
    losses = [
        nn.functional.cross_entropy(model(attacked), labels).item()
        for attacked in (
            x,
            fgsm(model, x, labels, mean=MEAN, std=STD, epsilon=0.1),
            pgd(model, x, labels, mean=MEAN, std=STD, epsilon=0.1, steps=20, step_size=0.02),
        )
    ]
    assert losses[0] < losses[1] < losses[2]


def test_radius_zero_changes_nothing():
    pixels, labels = images()
    for attack in ATTACKS.values():
        found = attack(linear_model(), normalised(pixels), labels, epsilon=0.0)
        np.testing.assert_allclose(found, normalised(pixels), atol=1e-14)


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"epsilon": 8.0}, "epsilon is 8.0"), ({"epsilon": float("nan")}, "epsilon is nan"),
     ({"steps": 0}, "0 steps")],
)  # fmt: skip
def test_bad_input_is_named(bad, message):
    pixels, labels = images()
    with pytest.raises(InputError, match=message):
        pgd(linear_model(), normalised(pixels), labels, mean=MEAN, std=STD, **bad)


def test_no_images_and_no_gradients_are_no_obstacle():
    model, (pixels, labels) = linear_model(), images()
    x = normalised(pixels)
    for attack in ATTACKS.values():
        assert attack(model, x[:0], labels[:0]).shape == (0, 2, 4, 4)
        with torch.no_grad():
            assert torch.equal(attack(model, x, labels), attack(model, x, labels))
