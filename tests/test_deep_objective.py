"""The objectives equal their formulas, recomputed in plain NumPy, in value and gradient."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deep.mixup import ERM, Mixup, binary_cross_entropy_of_softmax
from deep.mixupe import MixupE, frozen_statistics
from deep.models import build_model
from deep.objective import OBJECTIVES, build_objective
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
        total = MixupE(model, head, ALPHA, BETA, eta=eta, generator=rng(3))(x, targets).item()
        assert total == pytest.approx(abs(mixup_loss), rel=1e-12)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_mixupe_gradient_is_that_of_the_formula_with_eta_hat_constant(head):
    """Central differences of η̂ (L_mix + ηR) in NumPy, η̂ held at its value."""
    model, x, targets = problem()
    objective = MixupE(model, head, ALPHA, BETA, eta=ETA, generator=rng(3))
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
    objective = build_objective("mixupe-paper", model, generator=rng())
    assert list(objective.parameters()) == list(model.parameters())
    objective.eval()
    assert not model.training


def staged(samples=8):
    """A smooth network with stages, and a batch; float64."""
    torch.manual_seed(1)
    model = nn.Sequential()
    stages = (nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 5), nn.Tanh()))
    model.stages = nn.Sequential(*stages)
    model.linear = nn.Linear(5, 3)
    x = torch.randn(samples, 4, dtype=torch.float64, generator=rng(1))
    targets = torch.eye(3, dtype=torch.float64)[torch.arange(samples) % 3]
    return model.double(), x, targets


def rescaled(mixup_loss, eta_penalty):
    """η̂ (L_mix + η E[a] P) with η̂ constant."""
    total = mixup_loss + eta_penalty
    return (mixup_loss / total).abs().detach() * total


def slow_penalty(form, model, x, targets, mean, tau):
    """P of each form, example by example, from the formulas."""
    terms = []
    for x_i, y_i in zip(x, targets, strict=True):

        def f(v):
            return model(v[None])[0]

        logits = f(x_i)
        u = logits.softmax(0) - y_i
        if form in ("v1", "v2", "exact"):
            jacobian = torch.autograd.functional.jacobian(f, x_i, create_graph=True)
            direction = (mean - x_i).detach()
            q = (u if form == "exact" else u.detach()) @ jacobian @ direction
            terms.append({"v1": q if q < tau else 0 * q}.get(form, q.abs()))
        else:
            q_hat = -(u.detach() if form == "v4" else u) @ logits
            kept = q_hat if form == "v4" or q_hat < tau else 0 * q_hat
            terms.append(q_hat.abs() if form == "paper" else -kept)
    return sum(terms) / len(x)


@pytest.mark.parametrize("form", ["paper", "v1", "v2", "v3", "v4", "exact"])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_every_form_equals_its_formula_example_by_example(form, tau):
    """Value to 1e-6 of the penalised total and of the penalty, gradient's cosine to 1e-5."""
    model, x, targets = staged()
    mean = torch.full((4,), 0.3, dtype=torch.float64)
    eta, mean_a = 5.0, 2 * ALPHA * BETA / ((ALPHA + BETA) * (ALPHA + BETA + 1))
    name = f"mixupe-official-{form}" if form.startswith("v") else f"mixupe-{form}"
    objective = build_objective(
        name, model, alpha=ALPHA, beta=BETA, eta=eta, tau=tau, mean=mean, generator=rng(3)
    )
    value, found = gradient(objective, x, targets)

    model.zero_grad()
    mixup_loss = Mixup(model, alpha=ALPHA, beta=BETA, generator=rng(3))(x, targets)
    penalty = slow_penalty(form, model, x, targets, mean, tau)
    expected = rescaled(mixup_loss, eta * mean_a * penalty)
    expected.backward()
    grad = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert objective.penalty(x, targets).item() == pytest.approx(penalty.item(), rel=1e-6)
    assert (grad @ found / (grad.norm() * found.norm())).item() == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(found, grad, rtol=1e-8, atol=1e-12)


def test_tau_leaves_out_what_is_not_below_it():
    model, x, targets = staged()
    mean = torch.zeros(4, dtype=torch.float64)
    for name in ("mixupe-official-v1", "mixupe-official-v3"):
        penalties = [
            build_objective(name, model, tau=tau, mean=mean, generator=rng()).penalty(x, targets)
            for tau in (-np.inf, 0.05, np.inf)
        ]
        assert penalties[0] == 0
        assert penalties[1] != penalties[2]


class Cube(nn.Module):
    """A function without a rule in `theory.tangents`, as in users' models."""

    def forward(self, x):
        return x**3


def batch_normed(first=nn.Tanh):
    """Not linear before the first batch norm, which would undo a common move towards the mean."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 6), first()), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5),
        nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    x = torch.randn(9, 4, dtype=torch.float64, generator=rng(1))
    return model, x, torch.eye(3, dtype=torch.float64)[torch.arange(9) % 3]


class Unruled(nn.Module):
    """The identity, by an operation that `theory.tangents` has no rule for."""

    def forward(self, x):
        return x.roll(0, 0)


@pytest.fixture(params=["tangents", "double backward"])
def way(request):
    """What keeps mixupe-exact on each of its ways, at the end of a model."""
    return nn.Identity() if request.param == "tangents" else Unruled()


def test_exact_q_through_train_mode_batch_norm_moves_the_whole_batch(way):
    """|q| and its parameter gradient against central differences of the coupled batch."""
    model, x, targets = batch_normed()
    model.append(way)
    mean = torch.full((4,), 0.2, dtype=torch.float64)
    objective = build_objective("mixupe-exact", model, mean=mean, generator=rng())

    def losses(a):
        logits = model(x + a * (mean - x))
        return -(targets * logits.log_softmax(1)).sum(1)

    def penalty():
        """Fourth-order central differences in a."""
        h = 1e-3
        with torch.no_grad(), frozen_statistics(model):
            q = (8 * (losses(h) - losses(-h)) - (losses(2 * h) - losses(-2 * h))) / (12 * h)
        return q.abs().mean().item()

    found = objective.penalty(x, targets)
    assert found.item() == pytest.approx(penalty(), rel=1e-8)
    assert objective._has_tangents is not isinstance(way, Unruled)
    found.backward()
    for seed in range(4):
        direction = [torch.randn(p.shape, dtype=p.dtype, generator=rng(seed))
                     for p in model.parameters()]  # fmt: skip
        slope = sum((p.grad * d).sum().item()
                    for p, d in zip(model.parameters(), direction, strict=True))  # fmt: skip
        values, step = [], 1e-5
        for shift in (step, -2 * step, step):
            with torch.no_grad():
                for p, d in zip(model.parameters(), direction, strict=True):
                    p += shift * d
            values.append(penalty())
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_exact_q_vanishes_where_batch_norm_follows_a_fully_connected_layer():
    """x + a(x̄' − x) is affine in x and equal for all examples, which batch norm undoes."""
    for layers, least, most in (((nn.Tanh(),), 1e-2, 1), ((), 0, 1e-12)):
        torch.manual_seed(2)
        norm = nn.BatchNorm1d(6, eps=1e-20)
        model = nn.Sequential(nn.Linear(4, 6), *layers, norm, nn.Tanh(), nn.Linear(6, 3)).double()
        _, x, targets = batch_normed()
        mean = torch.full((4,), 0.2, dtype=torch.float64)
        objective = build_objective("mixupe-exact", model, mean=mean, generator=rng())
        assert least <= objective.penalty(x, targets).item() < most


@pytest.mark.parametrize("first", [nn.Tanh, Cube])
def test_exact_q_in_evaluation_mode_is_each_examples_own(first):
    """Value and gradient by the Jacobian of one example after another."""
    model, x, targets = batch_normed(first)
    model.eval()
    mean = torch.full((4,), 0.2, dtype=torch.float64)
    objective = build_objective("mixupe-exact", model, mean=mean, generator=rng())
    parameters = list(model.parameters())
    found = objective.penalty(x, targets)
    expected = slow_penalty("exact", model, x, targets, mean, 1.0)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(v, parameters) for v in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_forward_passes_in_bfloat16_point_the_same_way(name, way):
    """Under autocast, through convolutions and train-mode batch norm; and the loss is float32."""
    grads = []
    for autocast in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10), way,
        )  # fmt: skip
        model.mixing_layers = [model[2]]
        x, targets = torch.randn(16, 3, 8, 8), torch.eye(10).repeat(2, 1)[:16]
        objective = build_objective(name, model, mean=x.mean(0), eta=0.1, generator=rng(3))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = objective(x, targets)
        assert value.dtype == torch.float32
        value.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert nn.functional.cosine_similarity(*grads, dim=0) > 0.98


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_need_no_gradients_to_be_asked_for(name):
    values = []
    for mode in (torch.enable_grad, torch.no_grad):
        model, x, targets = batch_normed()
        model.mixing_layers = [model[2]]
        mean = torch.zeros(4, dtype=torch.float64)
        objective = build_objective(name, model, mean=mean, generator=rng(3))
        with mode():
            values.append(objective(x, targets).item())
    assert values[0] == values[1]


def test_exact_q_updates_running_statistics_once_and_draws_dropout_once(way):
    model, x, targets = batch_normed()
    model.append(nn.Dropout(0.5))
    model.append(way)
    objective = build_objective(
        "mixupe-exact", model, mean=torch.zeros(4, dtype=torch.float64), generator=rng()
    )
    objective.penalty(x, targets)
    assert model[1].num_batches_tracked == 1
    torch.manual_seed(5)
    objective.penalty(x, targets)
    after = torch.rand(1)
    torch.manual_seed(5)
    model(x)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("first", [nn.Tanh, Cube])
def test_exact_q_works_under_autocast(first):
    model, x, targets = batch_normed(first)
    x, targets = x.float(), targets.float()
    objective = build_objective(
        "mixupe-exact", model.float(), mean=torch.full((4,), 0.2), generator=rng()
    )
    expected = objective.penalty(x, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective.penalty(x, targets)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=0.05)
    assert found != expected


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name.startswith("mixupe")])
def test_frozen_statistics_see_the_mixed_batch_alone(name):
    """The clean pass is normalised by the batch all the same: the gradient is the other's."""
    grads = []
    for clean in ("update", "freeze"):
        model, x, targets = batch_normed()
        objective = build_objective(
            name, model, eta=3.0, mean=torch.zeros(4, dtype=torch.float64),
            clean_statistics=clean, generator=rng(3),
        )  # fmt: skip
        grads.append(gradient(objective, x, targets)[1])
        assert model[1].num_batches_tracked == (2 if clean == "update" else 1)
    assert torch.equal(*grads)
    reference, _, _ = batch_normed()
    Mixup(reference, generator=rng(3))(x, targets)
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean)
    torch.testing.assert_close(model[4].running_var, reference[4].running_var)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name.startswith("mixupe")])
def test_frozen_instance_norm_sees_the_mixed_batch_alone(name):
    """Its running mean is then a tenth of the mixed batch's, and the gradient the other's."""
    grads = []
    for clean in ("update", "freeze"):
        torch.manual_seed(0)
        norm = nn.InstanceNorm1d(4, track_running_stats=True)
        model = nn.Sequential(norm, nn.Flatten(), nn.Linear(20, 3)).double()
        x = torch.randn(6, 4, 5, dtype=torch.float64, generator=rng(1)) + 3
        targets = torch.eye(3, dtype=torch.float64).repeat(2, 1)
        objective = build_objective(
            name, model, alpha=ALPHA, eta=3.0, mean=x.mean(0), clean_statistics=clean,
            generator=rng(3),
        )  # fmt: skip
        grads.append(gradient(objective, x, targets)[1])
        generator = rng(3)
        lam = beta_law(ALPHA).sample(1, generator).item()
        mixed = lam * x + (1 - lam) * x[torch.randperm(6, generator=generator)]
        expected = 0.1 * mixed.mean((0, 2))
        assert torch.allclose(norm.running_mean, expected) == (clean == "freeze")
    assert torch.equal(*grads)


def test_lam_of_each_sample():
    model, x, targets = problem()
    found = Mixup(model, alpha=ALPHA, beta=BETA, lam="sample", generator=rng(3))(x, targets)
    generator = rng(3)
    lam = beta_law(ALPHA, BETA).sample(len(x), generator).numpy()[:, None]
    partner = torch.randperm(len(x), generator=generator).numpy()
    inputs, y = x.numpy().reshape(len(x), -1), targets.numpy()
    mixed = lam * y + (1 - lam) * y[partner]
    logits = numpy_logits(model, lam * inputs + (1 - lam) * inputs[partner])
    assert found.item() == pytest.approx(numpy_loss(logits, mixed, "softmax"), rel=1e-12)


@pytest.mark.parametrize("lam", ["batch", "sample"])
def test_manifold_mixup_mixes_input_or_a_stage_with_equal_chances(lam):
    model, x, targets = staged()
    objective = build_objective("manifold_mixup", model, lam=lam, generator=rng(3))
    generator, places = rng(3), []
    for _ in range(60):
        found = objective(x, targets).item()
        share = beta_law(1.0).sample(1 if lam == "batch" else len(x), generator)[:, None]
        partner = torch.randperm(len(x), generator=generator)
        places.append(int(torch.randint(3, (), generator=generator)))
        z = x
        for place, stage in enumerate((*model.stages, model.linear)):
            if place == places[-1]:
                z = share * z + (1 - share) * z[partner]
            z = stage(z)
        mixed = share * targets + (1 - share) * targets[partner]
        expected = -(mixed * z.log_softmax(1)).sum(1).mean().item()
        assert found == pytest.approx(expected, rel=1e-12)
    assert min(places.count(place) for place in range(3)) > 10


def test_manifold_mixup_takes_the_layers_that_a_model_names():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(InputError, match="give it an attribute mixing_layers"):
        build_objective("manifold_mixup", model, generator=rng())
    model.mixing_layers = [model[1]]
    objective = build_objective("manifold_mixup", model, generator=rng())
    assert objective(torch.randn(6, 4), torch.eye(3).repeat(2, 1)).isfinite()
    assert not model[1]._forward_hooks


def test_manifold_mixup_refuses_a_layer_that_would_be_mixed_twice_or_never():
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 3), shared)
    for layer, times in ((shared, 2), (nn.Tanh(), 0)):
        model.mixing_layers = [layer]
        objective = build_objective("manifold_mixup", model, generator=rng())

        def several(objective=objective):  # the input is drawn as well
            for _ in range(20):
                objective(torch.randn(6, 4), torch.eye(3).repeat(2, 1))

        with pytest.raises(InputError, match=f"mixing layer 1 of Sequential ran {times} times"):
            several()
        assert not layer._forward_hooks


class Recurrent(nn.Module):
    """A network whose layer returns a tuple."""

    def __init__(self):
        super().__init__()
        self.read, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.read(x[:, None])[0][:, 0])


def test_manifold_mixup_refuses_what_it_cannot_mix():
    model = Recurrent()
    model.mixing_layers = model.out  # not in a list
    with pytest.raises(InputError, match="give it an attribute mixing_layers, a list"):
        build_objective("manifold_mixup", model, generator=rng())
    model = Recurrent()
    model.mixing_layers = [model.read] * 9  # drawn at once, the input with a chance of 1 in 10
    objective = build_objective("manifold_mixup", model, generator=rng())
    with pytest.raises(InputError, match="of Recurrent does not return one tensor with a row"):
        objective(torch.randn(6, 4), torch.eye(3).repeat(2, 1))


class Attention(nn.Module):
    """Self-attention over two tokens, by PyTorch's layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.read = nn.Linear(8, 3)

    def forward(self, x):
        return self.read(self.attend(self.embed(x.reshape(len(x), 2, 2))).mean(1))


EXACT_Q = {"mixupe-official-v1": "v1", "mixupe-official-v2": "v2", "mixupe-exact": "exact"}


@pytest.mark.parametrize("name", EXACT_Q)
def test_exact_q_through_attention_uses_kernels_with_second_derivatives(name):
    """The fused ones have none; the gradient is that of the formula example by example."""
    torch.manual_seed(4)
    model = Attention().double()
    x = torch.randn(5, 4, dtype=torch.float64, generator=rng(1))
    targets = torch.eye(3, dtype=torch.float64)[torch.arange(5) % 3]
    mean = torch.full((4,), 0.3, dtype=torch.float64)
    objective = build_objective(name, model, eta=2.0, tau=0.05, mean=mean, generator=rng(3))
    value, found = gradient(objective, x, targets)
    model.zero_grad()
    mixup_loss = Mixup(model, generator=rng(3))(x, targets)
    with sdpa_kernel(SDPBackend.MATH):
        penalty = slow_penalty(EXACT_Q[name], model, x, targets, mean, 0.05)
    expected = rescaled(mixup_loss, 2.0 / 3 * penalty)  # E[a] = α/(2α + 1)
    expected.backward()
    grad = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert value == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(found, grad, rtol=1e-8, atol=1e-12)


class Staged(nn.Module):
    """As `staged`, with a forward of its own: PyTorch does not compile that of `nn.Sequential`."""

    def __init__(self, stages, linear):
        super().__init__()
        self.stages, self.linear = stages, linear

    def forward(self, x):
        return self.linear(self.stages(x))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_compiled_models_train_as_plain_ones(name):
    """Compiled graphs have no second derivatives, and do not notice Manifold Mixup's hooks."""
    results = []
    for compiled in (False, True):
        plain, x, targets = staged()
        model = Staged(plain.stages, plain.linear)
        if compiled:
            torch._dynamo.reset()
            model.compile(backend="aot_eager")
            model(x)  # into a graph without hooks
        mean = torch.full((4,), 0.3, dtype=torch.float64)
        objective = build_objective(name, model, eta=2.0, tau=0.05, mean=mean, generator=rng(3))
        results.append([gradient(objective, x, targets) for _ in range(6)])
    for (value, found), (expected, grad) in zip(*results, strict=True):
        assert value == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(found, grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EXACT_Q)
def test_mean_of_another_precision_is_taken_in_the_models(name):
    model, x, targets = batch_normed()
    model, x, targets = model.float(), x.float(), targets.float()
    values = []
    for dtype in (torch.float32, torch.float64):
        objective = build_objective(name, model, mean=x.mean(0).to(dtype), generator=rng())
        values.append(objective.penalty(x, targets))
    assert values[0].dtype == values[1].dtype == torch.float32
    assert torch.equal(*values)


def test_a_penalty_of_nan_is_not_left_out_as_above_tau():
    """Else training would go on as if the clean pass were sound."""
    model, _, _ = staged()
    objective = build_objective("mixupe-official-v3", model, generator=rng())
    assert objective.below(torch.tensor([np.nan, 0.5])).isnan()


def test_bce_on_softmax_is_pytorchs_and_survives_saturation():
    logits = 3 * torch.randn(7, 4, dtype=torch.float64, generator=rng(1))
    targets = torch.rand(7, 4, dtype=torch.float64, generator=rng(2)).softmax(1)
    expected = nn.functional.binary_cross_entropy(logits.softmax(1), targets)
    found = binary_cross_entropy_of_softmax(logits, targets).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    certain = torch.tensor([[800.0, 0.0, -5.0]], dtype=torch.float64, requires_grad=True)
    loss = binary_cross_entropy_of_softmax(certain, torch.tensor([[0.0, 1.0, 0.0]]).double())
    # −log(1 − p_0) = 800 − log(1 + e^−5) for class 0, −log p_1 = 800, and −log(1 − p_2) = 0.
    torch.testing.assert_close(
        loss, torch.tensor([[800 - np.log1p(np.exp(-5)), 800.0, 0.0]]).double()
    )
    loss.sum().backward()
    assert certain.grad.isfinite().all()


def test_accuracy_counts_a_mixed_example_by_the_weight_of_the_label_predicted():
    model, x, targets = problem(samples=12)
    targets = torch.eye(3, dtype=torch.float64)[torch.arange(12) % 3]
    objective = Mixup(model, generator=rng(3))
    objective(x, targets)
    generator = rng(3)
    lam = beta_law(1.0).sample(1, generator).item()
    partner = torch.randperm(12, generator=generator)
    predicted = model(lam * x + (1 - lam) * x[partner]).argmax(1)
    labels = targets.argmax(1)
    hits = lam * (predicted == labels).double() + (1 - lam) * (predicted == labels[partner])
    assert objective.accuracy.item() == pytest.approx(hits.mean().item())
    erm = ERM(model)
    erm(x, targets)
    assert erm.accuracy.item() == (model(x).argmax(1) == labels).double().mean().item()
    single = ERM(nn.Linear(4, 1), "sigmoid")
    single(torch.zeros(2, 4), torch.tensor([[1.0], [0.0]]))
    assert single.accuracy.item() == 0.5


def test_build_objective_builds_by_name():
    model, _, _ = staged()
    kinds = {
        "erm": "ERM", "mixup": "Mixup", "manifold_mixup": "ManifoldMixup",
        "mixupe-paper": "MixupE", "mixupe-official-v1": "OfficialV1",
        "mixupe-official-v2": "OfficialV2", "mixupe-official-v3": "OfficialV3",
        "mixupe-official-v4": "OfficialV4", "mixupe-exact": "Exact",
    }  # fmt: skip
    assert tuple(kinds) == OBJECTIVES
    for name, kind in kinds.items():
        built = build_objective(name, model, mean=torch.zeros(4).double(), generator=rng())
        assert type(built).__name__ == kind
        assert list(dict(built.named_parameters())) == [
            f"model.{name}" for name, _ in model.named_parameters()
        ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mixup+",
            {},
            "unknown objective 'mixup\\+': did you mean mixup. choose one of erm, mixup, ",
        ),
        ("mixup", {"alpha": 0.0}, "alpha is 0"),
        ("mixup", {"alpha": float("nan")}, "alpha is nan"),
        ("mixupe-paper", {"beta": -1.0}, "beta is -1"),
        ("mixupe-paper", {"eta": -0.1}, "eta is -0.1"),
        ("mixupe-paper", {"eta": float("inf")}, "eta is inf"),
        ("mixupe-official-v3", {"tau": float("nan")}, "tau is NaN"),
        ("mixupe-exact", {}, "needs the mean of the training inputs"),
        ("mixupe-paper", {"clean_statistics": "keep"}, "unknown clean_statistics 'keep'"),
        ("mixup", {"lam": "epoch"}, "unknown lam 'epoch'"),
        ("erm", {"loss": "hinge"}, "unknown loss 'hinge'"),
        ("erm", {"loss": "bce-softmax", "head": "sigmoid"}, "needs the softmax head"),
        ("mixupe-paper", {"loss": "bce-softmax"}, "is for erm, mixup and manifold_mixup"),
    ],
)
def test_build_objective_refuses(name, options, message):
    with pytest.raises(InputError, match=message):
        build_objective(name, nn.Linear(2, 2), generator=rng(), **options)


def test_objectives_refuse_batches_that_they_cannot_use():
    model, x, targets = staged()
    for name in OBJECTIVES[1:]:
        mean = torch.zeros(4, dtype=torch.float64)
        objective = build_objective(name, model, mean=mean, generator=rng())
        with pytest.raises(InputError, match="a batch of one example cannot be mixed"):
            objective(x[:1], targets[:1])
    normed, x_normed, labels = batch_normed()
    with pytest.raises(InputError, match="batch norm cannot normalise a batch of one example"):
        ERM(normed)(x_normed[:1], labels[:1])
    for name in ("mixupe-exact", "mixupe-official-v2"):
        objective = build_objective(name, model, mean=torch.zeros(3), generator=rng())
        with pytest.raises(InputError, match=r"mean has shape \(3,\) and one input \(4,\)"):
            objective(x, targets)
