"""The objectives equal their formulas, recomputed in plain NumPy, in value and gradient."""

import numpy as np
import pytest
import torch
from torch import nn

from deep.models import build_model
from deep.objective import ERM, OBJECTIVES, Mixup, MixupE, build_objective
from theory.errors import InputError
from theory.mixing import beta_law

ALPHA, BETA, ETA = 0.7, 1.9, 2.0


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(samples=9, classes=3):
    """A small network and a batch with soft and hard targets, in float64."""
    torch.manual_seed(0)
    model = build_model("mlp", in_channels=5, image_size=1, num_classes=classes, width=8).double()
    x = 3 * torch.randn(samples, 5, 1, 1, dtype=torch.float64, generator=rng(1))
    targets = torch.rand(samples, classes, dtype=torch.float64, generator=rng(2)).softmax(1)
    targets[::2] = torch.eye(classes, dtype=torch.float64)[
        torch.arange(len(targets[::2])) % classes
    ]
    return model, x, targets


def numpy_logits(model, x):
    """The MLP's forward pass."""
    z = x.reshape(len(x), -1)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        z = z @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if layer is not layers[-1]:
            z = np.maximum(z, 0)
    return z


def numpy_loss(logits, targets, head):
    """Mean of h(f) − yᵀf."""
    h = np.log(np.exp(logits).sum(1)) if head == "softmax" else np.log1p(np.exp(logits)).sum(1)
    return (h - (targets * logits).sum(1)).mean()


def numpy_terms(model, x, targets, head, seed):
    """L_mix and R with the λ and partners that an equal seed gives."""
    generator = rng(seed)
    lam = beta_law(ALPHA, BETA).sample(1, generator).item()
    partner = torch.randperm(len(x), generator=generator).numpy()
    x, y = x.numpy(), targets.numpy()
    mixed = numpy_logits(model, lam * x + (1 - lam) * x[partner])
    mixup_loss = numpy_loss(mixed, lam * y + (1 - lam) * y[partner], head)
    f = numpy_logits(model, x)
    exponentials = np.exp(f)
    g = exponentials / (
        exponentials.sum(1, keepdims=True) if head == "softmax" else 1 + exponentials
    )
    # E[a] of α/(α+β)·Beta(α+1, β) + β/(α+β)·Beta(β+1, α), by hand.
    total = ALPHA + BETA
    mean_a = 2 * ALPHA * BETA / (total * (total + 1))
    return mixup_loss, mean_a * np.abs(((y - g) * f).sum(1)).mean()


def gradient(objective, x, targets):
    objective.zero_grad()
    value = objective(x, targets)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in objective.parameters()])


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_values_are_those_of_the_formulas(head):
    model, x, targets = problem()
    erm = ERM(model, head)(x, targets).item()
    assert erm == pytest.approx(numpy_loss(numpy_logits(model, x.numpy()), targets.numpy(), head))
    mixup_loss, _ = numpy_terms(model, x, targets, head, seed=3)
    mixup = Mixup(model, head, ALPHA, BETA, generator=rng(3))(x, targets).item()
    assert mixup == pytest.approx(mixup_loss, rel=1e-12)
    assert abs(mixup - erm) > 1e-5  # the draw did mix


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_mixupe_has_the_value_of_mixup_whatever_eta(head):
    """η̂ = |L_mix| / |L_mix + ηR| rescales the total to |L_mix|."""
    model, x, targets = problem()
    mixup_loss, _ = numpy_terms(model, x, targets, head, seed=3)
    for eta in (0.0, 0.001, 1.0, 50.0):
        total = MixupE(model, head, ALPHA, BETA, eta, generator=rng(3))(x, targets).item()
        assert total == pytest.approx(abs(mixup_loss), rel=1e-12)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_mixupe_gradient_is_that_of_the_formula_with_eta_hat_constant(head):
    """Central differences of η̂ (L_mix + ηR) in NumPy, η̂ held at its value."""
    model, x, targets = problem()
    objective = MixupE(model, head, ALPHA, BETA, ETA, generator=rng(3))
    _, found = gradient(objective, x, targets)
    mixup_loss, penalty = numpy_terms(model, x, targets, head, seed=3)
    eta_hat = mixup_loss / (mixup_loss + ETA * penalty)
    assert eta_hat < 0.97  # far enough from 1 for a missing factor to show

    def total():
        mixup_loss, penalty = numpy_terms(model, x, targets, head, seed=3)
        return eta_hat * (mixup_loss + ETA * penalty)

    parameters = list(model.parameters())
    step = 1e-6
    for seed in range(6):
        directions = [torch.randn(p.shape, dtype=p.dtype, generator=rng(seed)) for p in parameters]
        values = []
        for sign in (1, -2, 1):  # to +step, −step, and back
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p += sign * step * d
            values.append(total())
        along = torch.cat([d.flatten() for d in directions]) @ found
        assert along.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_mixupe_without_penalty_is_mixup_in_value_and_gradient():
    model, x, targets = problem()
    value, grad = gradient(MixupE(model, eta=0.0, generator=rng(5)), x, targets)
    mixup_value, mixup_grad = gradient(Mixup(model, generator=rng(5)), x, targets)
    assert value == mixup_value
    torch.testing.assert_close(grad, mixup_grad, rtol=1e-14, atol=0)
    _, penalised = gradient(MixupE(model, eta=0.5, generator=rng(5)), x, targets)
    assert not torch.allclose(penalised, mixup_grad, rtol=1e-2)


def test_mixup_tends_to_erm_as_alpha_vanishes():
    """λ is then 0 or 1, and a permutation does not change the mean."""
    model, x, targets = problem()
    erm = ERM(model)(x, targets).item()
    for seed in range(10):
        mixup = Mixup(model, alpha=1e-4, generator=rng(seed))(x, targets).item()
        assert mixup == pytest.approx(erm, rel=1e-12)


def test_mixup_averages_to_the_loss_over_all_pairs():
    """E over λ and permutations is (1/n²) Σ_ij E_λ ℓ(mixed); 4 standard errors of 2000 draws."""
    model, x, targets = problem(samples=5)
    objective = Mixup(model, alpha=ALPHA, beta=BETA, generator=rng(7))
    with torch.no_grad():
        draws = np.array([objective(x, targets).item() for _ in range(2000)])
    x, y = x.numpy(), targets.numpy()
    rows = range(len(x))
    a, weights = beta_law(ALPHA, BETA).quadrature(200)
    exact = sum(
        w * np.mean([
            numpy_loss(numpy_logits(model, (1 - s) * x + s * x[[j] * len(x)]),
                       (1 - s) * y + s * y[j], "softmax")
            for j in rows
        ])
        for s, w in zip(a, weights, strict=True)
    )  # fmt: skip
    sem = draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean() - exact) < 4 * sem
    assert abs(draws.mean() - ERM(model)(torch.tensor(x), targets).item()) > 8 * sem


def test_equal_seeds_give_equal_draws_and_the_stream_goes_on():
    model, x, targets = problem()
    first, second = (Mixup(model, generator=rng(4)) for _ in range(2))
    drawn = [first(x, targets).item() for _ in range(3)]
    assert drawn == [second(x, targets).item() for _ in range(3)]
    assert len(set(drawn)) == 3


def test_mixupe_updates_running_statistics_by_the_mixed_then_the_clean_batch():
    """Two separate passes: each batch is normalised by its own statistics."""
    norm = nn.BatchNorm1d(4).double()
    model = nn.Sequential(norm, nn.Linear(4, 3).double())
    x = torch.randn(16, 4, dtype=torch.float64, generator=rng(1))
    targets = torch.eye(3, dtype=torch.float64)[torch.arange(16) % 3]
    MixupE(model, alpha=ALPHA, beta=BETA, generator=rng(3))(x, targets)
    generator = rng(3)
    lam = beta_law(ALPHA, BETA).sample(1, generator).item()
    mixed = lam * x + (1 - lam) * x[torch.randperm(16, generator=generator)]
    assert norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.1 * mixed.mean(0) + 0.1 * x.mean(0))
    expected = 0.9 * (0.9 + 0.1 * mixed.var(0)) + 0.1 * x.var(0)
    torch.testing.assert_close(norm.running_var, expected)


def test_perfect_fit_gives_zero_loss_and_gradient_not_nan():
    """L_mix and R both vanish in round-off: η̂ would be 0/0."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    x = torch.tensor([[1e4, -1e4], [1e4, -1e4]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    value, grad = gradient(MixupE(model, eta=1.0, generator=rng()), x, targets)
    assert value == 0
    assert grad.isfinite().all()


def test_model_with_a_single_logit_as_a_vector():
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    x, targets = torch.randn(6, 4, generator=rng()), torch.tensor([[0.0], [1.0]] * 3)
    expected = nn.functional.binary_cross_entropy_with_logits(model(x), targets[:, 0])
    torch.testing.assert_close(ERM(model, "sigmoid")(x, targets), expected)
    assert MixupE(model, "sigmoid", generator=rng())(x, targets).isfinite()


def test_objective_owns_the_model():
    model, _, _ = problem()
    objective = build_objective("mixupe", model, generator=rng())
    assert list(objective.parameters()) == list(model.parameters())
    objective.eval()
    assert not model.training


def test_build_objective_builds_by_name():
    model, x, targets = problem()
    kinds = {"erm": ERM, "mixup": Mixup, "mixupe": MixupE}
    assert set(kinds) == set(OBJECTIVES)
    for name, kind in kinds.items():
        built = build_objective(
            name, model, head="sigmoid", alpha=ALPHA, beta=BETA, eta=ETA, generator=rng(3)
        )
        assert type(built) is kind
        options = {"erm": (), "mixup": (ALPHA, BETA), "mixupe": (ALPHA, BETA, ETA)}[name]
        keywords = {} if name == "erm" else {"generator": rng(3)}
        expected = gradient(kind(model, "sigmoid", *options, **keywords), x, targets)
        found = gradient(built, x, targets)
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixup+", {}, "unknown objective 'mixup\\+': choose one of erm, mixup, mixupe"),
        ("mixup", {"alpha": 0.0}, "alpha is 0"),
        ("mixup", {"alpha": float("nan")}, "alpha is nan"),
        ("mixupe", {"beta": -1.0}, "beta is -1"),
        ("mixupe", {"eta": -0.1}, "eta is -0.1"),
        ("mixupe", {"eta": float("inf")}, "eta is inf"),
    ],
)
def test_build_objective_refuses(name, options, message):
    with pytest.raises(InputError, match=message):
        build_objective(name, nn.Linear(2, 2), generator=rng(), **options)
