"""Values and tangents in one pass equal forward mode, and their gradients reverse over reverse."""

import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from torch import Tensor, nn

from deep.models import build_model
from theory.errors import InputError
from theory.network import evaluating
from theory.tangents import value_and_tangent

MODELS = ("preact18", "wrn28-10", "vgg11", "lenet", "mlp")


def problem(name):
    """A narrow network of that name in float64, a batch and directions."""
    torch.manual_seed(0)
    width = {} if name == "lenet" else {"width": 8 if name == "mlp" else 2}
    model = build_model(name, in_channels=3, image_size=32, num_classes=4, **width).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    return model, x, torch.randn_like(x)


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_this_project_equals_forward_mode_and_double_backward(name, batch_norm):
    """The gradient of Σ w J v: reverse mode over vᵀ(Jᵀw), which no dual number enters."""
    model, x, direction = problem(name)
    weights = torch.randn(6, 4, dtype=torch.float64)
    parameters = list(model.parameters())

    def gradient(penalty: Tensor) -> Tensor:
        grads = torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in grads])

    with evaluating(model, batch_norm) as f:
        value, tangent = value_and_tangent(f, x, direction)
        with torch.no_grad():
            expected = torch.func.jvp(f, (x,), (direction,))
        found = gradient((weights * tangent).sum())
        leaf = x.clone().requires_grad_()
        (c,) = torch.autograd.grad(f(leaf), leaf, weights, create_graph=True)
        truth = gradient((c * direction).sum())
    torch.testing.assert_close((value, tangent), expected, rtol=1e-9, atol=1e-12)
    assert tangent.abs().max() > 1e-4
    assert (found - truth).norm() < 1e-11 * truth.norm()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_networks_come_out_right_or_are_refused(case):
    torch.manual_seed(1)
    model = case.build().double()
    x = torch.randn(5, *case.shape, dtype=torch.float64)
    direction = torch.randn_like(x)
    with evaluating(model) as f:
        try:
            found = value_and_tangent(f, x, direction)
        except InputError:
            return
        with torch.no_grad():
            expected = torch.func.jvp(f, (x,), (direction,))
    torch.testing.assert_close(tuple(t.detach() for t in found), expected, rtol=1e-9, atol=1e-10)


ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.SiLU(),
               nn.GELU(), nn.ELU()]  # fmt: skip


@pytest.mark.parametrize("layer", [*ACTIVATIONS, nn.BatchNorm1d(3, affine=False)], ids=str)
def test_layers_with_a_symmetric_jacobian(layer):
    layer = layer.double()
    x, v = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    _, tangent = value_and_tangent(layer, x, v)
    h = 1e-5
    slope = (layer(x + h * v) - layer(x - h * v)) / (2 * h)
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-8)


def test_running_statistics_see_the_values_alone_and_once():
    one, two = (nn.BatchNorm1d(3).double() for _ in range(2))
    x, v = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value_and_tangent(one, x, 100 * v)
    two(x)
    assert one.num_batches_tracked == 1
    assert torch.equal(one.running_mean, two.running_mean)
    assert torch.equal(one.running_var, two.running_var)


def test_dropout_masks_value_and_tangent_alike():
    ones = torch.ones(40, 5)
    torch.manual_seed(0)
    value, tangent = value_and_tangent(nn.Dropout(0.4), ones, 3 * ones)
    assert torch.equal(tangent, 3 * value)
    assert len(value.unique()) == 2


def test_columns_are_cut_out_of_values_and_tangents_alike():
    x, v = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2))
    value, tangent = value_and_tangent(lambda x: x.narrow(1, 1, 3), x, v)
    assert torch.equal(value, x[:, 1:4])
    assert torch.equal(tangent, v[:, 1:4])


def in_place_sum(x: Tensor) -> Tensor:
    z = torch.tanh(x)
    z += x
    return z


def test_in_place_sums_keep_their_meaning():
    x, v = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    _, tangent = value_and_tangent(in_place_sum, x, v)
    torch.testing.assert_close(tangent, (2 - x.tanh() ** 2) * v)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x + 1.0,
        lambda x: x + torch.ones(3),
        lambda x: x * x,
        lambda x: x - x.mean(0),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.elu(x, inplace=True),
        lambda x: F.elu(x, 1.0, True),
        lambda x: x.flip(0),
        lambda x: x.narrow(0, 0, 4),
        lambda x: x[torch.arange(len(x))],
        lambda x: torch.flatten(x).reshape(-1, 3),
        lambda x: F.layer_norm(x, (3,)),
        lambda x: x.sum(),
        lambda x: F.linear(torch.ones(4, 3), x),
        lambda x: torch.ones(4, 3),
    ],
)
def test_what_has_no_rule_is_refused(f):
    """Also sums over rows, constants, and functions that overwrite their input."""
    with pytest.raises(InputError, match=r"no rule for tangents|no tangent"):
        value_and_tangent(f, torch.randn(4, 3), torch.randn(4, 3))
