"""Layer shares against perturbed networks; closure against the gap; what the hooks leave behind."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, case_named, every_modular_case, make_problem, randomize_norms
from oracles import central
from torch import nn

from deep.models import build_model
from theory.attribution import LayerShares, attribution_table
from theory.first_order import first_order
from theory.network import evaluating


def measure(model, x, targets, head="softmax", mode="eval"):
    with evaluating(model, mode) as f, LayerShares(model) as shares:
        terms = first_order(f, x, targets, torch.zeros_like(x[0]), head)
    return terms, shares


def total(shares, terms):
    return sum(shares.by_layer.values(), torch.zeros_like(terms.homogeneity_gap))


def soft_targets(n, classes):
    rows = torch.rand(n, classes, dtype=torch.float64)
    return rows / rows.sum(1, keepdim=True)


@every_modular_case
def test_shares_sum_to_the_gap_example_by_example(case):
    problem = make_problem(case)
    terms, shares = measure(problem.model, problem.x, problem.targets, problem.head)
    torch.testing.assert_close(total(shares, terms), terms.homogeneity_gap, rtol=1e-10, atol=1e-13)
    if shares.by_layer:
        assert terms.homogeneity_gap.abs().min() > 1e-6


@pytest.mark.parametrize("width", [8, 64])
def test_closure_for_preact_resnet_18_with_randomized_batch_norm(width):
    torch.manual_seed(0)
    model = randomize_norms(build_model("preact18", num_classes=10, width=width)).double()
    n = 4 if width == 8 else 2
    x = torch.randn(n, 3, 32, 32, dtype=torch.float64)
    terms, shares = measure(model, x, soft_targets(n, 10))
    assert len(shares.by_layer) > 15
    error = (total(shares, terms) - terms.homogeneity_gap).abs() / terms.homogeneity_gap.abs()
    assert error.max() <= 1e-10


def main_of(output):
    return output[0] if isinstance(output, tuple) else output


class Offsets:
    """r = F(z) − dF(sz)/ds at s = 1 of each call of a module, by central differences; no autograd.

    `apply(t)` adds t·r to what every call returns.
    """

    def __init__(self, module):
        self.module, self.offsets, self.t, self.call = module, [], None, 0
        self.handle = module.register_forward_hook(self.hook, with_kwargs=True)

    def hook(self, module, inputs, keywords, output):
        if self.t is None:

            def scaled(s):
                moved = [
                    (1 + s) * z if torch.is_tensor(z) and z.is_floating_point() else z
                    for z in inputs
                ]
                return main_of(module.forward(*moved, **keywords))

            self.offsets.append((main_of(output) - central(scaled)).detach())
            return None
        moved = main_of(output) + self.t * self.offsets[self.call]
        self.call += 1
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    def apply(self, t):
        self.t, self.call = t, 0


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name not in ("relu-conv-no-bias", "inplace-residual")],
    ids=lambda case: case.name,
)
def test_each_share_is_the_effect_of_adding_the_layers_offset(case):
    """Share of l = d/dt (g − y)ᵀf when t·r_l is added to the layer's output, g − y held."""
    problem = make_problem(case)
    shares = measure(problem.model, problem.x, problem.targets, problem.head)[1]
    assert shares.by_layer
    modules = dict(problem.model.named_modules())
    with torch.no_grad(), evaluating(problem.model) as f:
        logits = f(problem.x)
        g = logits.softmax(1) if problem.head == "softmax" else logits.sigmoid()
        for name, share in shares.by_layer.items():
            offsets = Offsets(modules[name])
            f(problem.x)

            def moved(t, offsets=offsets):
                offsets.apply(t)
                return ((g - problem.targets) * f(problem.x)).sum(1)

            truth = central(moved)
            offsets.handle.remove()
            torch.testing.assert_close(share, truth, rtol=1e-7, atol=1e-8)
            assert shares.kinds[name] == type(modules[name]).__name__


def test_inplace_activations_are_measured_and_given_back():
    problem = make_problem(case_named("inplace-residual"))
    shares = measure(problem.model, problem.x, problem.targets)[1]
    assert problem.model.relu.inplace
    assert problem.model.silu.inplace
    # SiLU's share, by hand: its offset is zσ(z) − z(σ + zσσ') = −z²σ(z)(1 − σ(z)).
    caught = {}
    model = problem.model.eval()
    model.silu.inplace = False
    handle = model.silu.register_forward_hook(
        lambda module, inputs, output: caught.update(z=inputs[0].detach(), out=output)
    )
    logits = model(problem.x)
    handle.remove()
    u = logits.softmax(1).detach() - problem.targets
    (gradient,) = torch.autograd.grad(logits, caught["out"], u)
    z = caught["z"]
    offset = -(z**2) * z.sigmoid() * (1 - z.sigmoid())
    torch.testing.assert_close(
        shares.by_layer["silu"], (gradient * offset).flatten(1).sum(1), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("act", [F.softplus, F.gelu, torch.sin])
def test_a_functional_operation_is_the_unattributed_remainder(act):
    """Two bias-free layers around act(z): the whole gap is (g − y)ᵀW(act(z) − z·act'(z))."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 5, bias=False)
            self.second = nn.Linear(5, 3)

        def forward(self, x):
            return self.second(act(self.first(x)))

    torch.manual_seed(0)
    model = Net().double()
    x, y = torch.randn(6, 4).double(), soft_targets(6, 3)
    terms, shares = measure(model, x, y)
    assert set(shares.by_layer) == {"second"}
    table = attribution_table(
        {name: [share] for name, share in shares.by_layer.items()},
        shares.kinds,
        terms.homogeneity_gap.numpy(),
    )
    z = model.first(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(act(z).sum(), z)
    u = model(x).softmax(1) - y
    known = (u @ model.second.weight * (act(z) - z * slope)).sum(1).detach()
    assert table["layer"].iloc[-1] == "(unattributed)"
    assert table["mean"].iloc[-1] == pytest.approx(float(known.mean()), rel=1e-10)
    assert table["mean_abs"].iloc[-1] == pytest.approx(float(known.abs().mean()), rel=1e-10)
    bias = (u @ model.second.bias).detach()
    assert table["mean"].iloc[0] == pytest.approx(float(bias.mean()), rel=1e-10)


def test_a_layer_used_twice_has_the_sum_of_its_calls():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(3, 3)

        def forward(self, x):
            return self.shared(torch.relu(self.shared(x)))

    torch.manual_seed(1)
    model = Net().double()
    x, y = torch.randn(5, 3).double(), soft_targets(5, 3)
    terms, shares = measure(model, x, y)
    assert list(shares.by_layer) == ["shared"]
    torch.testing.assert_close(shares.by_layer["shared"], terms.homogeneity_gap)
    u = model(x).softmax(1) - y
    back = (u @ model.shared.weight) * (model.shared(x) > 0)
    by_hand = (u @ model.shared.bias) + (back @ model.shared.bias)
    torch.testing.assert_close(shares.by_layer["shared"], by_hand.detach())


class LeafNet(nn.Module):
    """No submodules: parameters and functional calls only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.softplus(F.linear(x, self.weight, self.bias))


class OwnLinear(nn.Linear):
    """A subclass whose forward is not PyTorch's: the closed form for Linear is wrong for it."""

    def forward(self, x):
        return F.linear(x, self.weight).sin() + self.bias.square()


@pytest.mark.parametrize("build", [LeafNet, lambda: nn.Linear(4, 3), lambda: OwnLinear(4, 3)])
def test_a_network_that_is_one_leaf_has_the_whole_gap(build):
    torch.manual_seed(0)
    model = build().double()
    x, y = torch.randn(5, 4).double(), soft_targets(5, 3)
    terms, shares = measure(model, x, y)
    assert list(shares.by_layer) == ["(model)"]
    torch.testing.assert_close(shares.by_layer["(model)"], terms.homogeneity_gap)


PARAMETRIZED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("wrap", PARAMETRIZED.values(), ids=PARAMETRIZED.keys())
def test_what_makes_a_weight_is_no_layer(wrap):
    """A parametrization computes a constant in x; the layer that uses it has the share."""
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 4).double(), soft_targets(5, 3)
    terms, shares = measure(model, x, y)
    assert set(shares.by_layer) == {"0", "2"}
    torch.testing.assert_close(total(shares, terms), terms.homogeneity_gap)


@pytest.mark.parametrize("trainable", [True, False])
def test_embedded_positions_are_part_of_the_remainder(trainable):
    """As many positions as examples, so that a share by position would pass for one by example."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Embedding(3, 4)
            self.fc = nn.Linear(12, 3)

        def forward(self, x):
            return self.fc((x + self.positions(torch.arange(3))).flatten(1))

    torch.manual_seed(0)
    model = Net().double().requires_grad_(trainable)
    x, y = torch.randn(3, 3, 4).double(), soft_targets(3, 3)
    terms, shares = measure(model, x, y)
    assert set(shares.by_layer) == {"fc"}
    u = (model(x).softmax(1) - y).detach()
    left = u @ model.fc.weight @ model.positions.weight.flatten()
    torch.testing.assert_close(terms.homogeneity_gap - shares.by_layer["fc"], left.detach())


def test_a_layer_that_does_not_lead_with_the_batch_has_its_total():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.fc = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.fc(self.norm(x.transpose(0, 1)).mean(0))

    torch.manual_seed(0)
    model = Net().double()
    x, y = torch.randn(5, 3, 4).double(), soft_targets(5, 3)
    terms, shares = measure(model, x, y)
    assert shares.by_layer["norm"].shape == ()
    torch.testing.assert_close(shares.by_layer["norm"], terms.homogeneity_gap.sum())


class Encoder(nn.Module):
    """Takes (batch, positions, 6); inside, examples are the second axis unless `batch_first`."""

    def __init__(self, activation, *, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.encoder = nn.TransformerEncoderLayer(
            6, 2, 8, activation=activation, batch_first=batch_first
        )
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        if self.batch_first:
            return self.fc(self.encoder(x).mean(1))
        return self.fc(self.encoder(x.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("activation", ["relu", "gelu"])  # the second is a functional operation
@pytest.mark.parametrize("batch_first", [False, True])
def test_as_many_positions_as_examples_are_not_taken_for_them(batch_first, activation, n):
    """Against the shares of one example at a time."""
    torch.manual_seed(0)
    model = Encoder(activation, batch_first=batch_first).double()
    x, y = torch.randn(n, n, 6).double(), soft_targets(n, 3)
    shares = measure(model, x, y)[1].by_layer
    alone = [measure(model, x[i : i + 1], y[i : i + 1])[1].by_layer for i in range(n)]
    assert "encoder.linear1" in shares
    for name, share in shares.items():
        truth = torch.stack([one[name].sum() for one in alone])
        resolved = batch_first or name == "fc"
        assert share.shape == ((n,) if resolved else ())
        torch.testing.assert_close(share, truth if resolved else truth.sum())


def test_recurrent_layers_close():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model = Net().double()
    x, y = torch.randn(4, 5, 3).double(), soft_targets(4, 3)
    terms, shares = measure(model, x, y)
    assert set(shares.by_layer) == {"lstm", "fc"}
    torch.testing.assert_close(total(shares, terms), terms.homogeneity_gap)


@pytest.mark.parametrize("name", ["gelu-conv-batch-norm", "inplace-residual"])
def test_batch_statistics_close_over_the_whole_batch(name):
    problem = make_problem(case_named(name), n=6)
    terms, shares = measure(problem.model, problem.x, problem.targets, mode="batch")
    whole = sum(share.sum() for share in shares.by_layer.values())
    torch.testing.assert_close(whole, terms.homogeneity_gap.sum(), rtol=1e-10, atol=1e-12)


def test_relu_without_biases_has_no_shares():
    problem = make_problem(case_named("relu-conv-no-bias"))
    assert measure(problem.model, problem.x, problem.targets)[1].by_layer == {}


def test_hooks_are_gone_afterwards_also_after_an_exception():
    problem = make_problem(case_named("inplace-residual"))
    problem.model.eval()

    def fail():
        with LayerShares(problem.model):
            assert not problem.model.relu.inplace
            problem.model(problem.x)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert problem.model.relu.inplace
    for module in problem.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("tanh-mlp", "2"),
        ("single-logit", "fc2"),
        ("transformer", "fc"),
        ("inplace-residual", "fc"),
        ("relu-conv-no-bias", "6"),
    ],
)
def test_the_last_layer_is_known_by_its_output(name, last):
    problem = make_problem(case_named(name))
    shares = measure(problem.model, problem.x, problem.targets, problem.head)[1]
    assert shares.last == last
    if last in shares.by_layer:
        with torch.no_grad(), evaluating(problem.model) as f:
            logits = f(problem.x)
        g = logits.softmax(1) if problem.head == "softmax" else logits.sigmoid()
        bias = problem.model.get_submodule(last).bias
        torch.testing.assert_close(shares.by_layer[last], (g - problem.targets) @ bias.detach())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
        LeafNet(),
        OwnLinear(4, 3),
    ],
    ids=["tanh", "relu", "leaf", "own"],
)
def test_a_network_that_does_not_end_in_an_affine_layer_has_no_last_one(model):
    shares = measure(model.double(), torch.randn(5, 4).double(), soft_targets(5, 3))[1]
    assert shares.last is None


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"), LayerShares(nn.Linear(2, 2)):
        pass


def test_recording_changes_no_result():
    problem = make_problem(case_named("transformer"))
    with evaluating(problem.model) as f:
        without = first_order(f, problem.x, problem.targets, problem.mean)
        with LayerShares(problem.model):
            recorded = first_order(f, problem.x, problem.targets, problem.mean)
    for name, column in vars(without).items():
        torch.testing.assert_close(getattr(recorded, name), column, rtol=1e-13, atol=1e-15)


def test_table_sorts_by_size_and_names_what_is_missing():
    shares = {
        "small": [torch.tensor([0.1, -0.1]), torch.tensor([0.1])],
        "large": [torch.tensor([1.0, -3.0]), torch.tensor([2.0])],
    }
    kinds = {"small": "Linear", "large": "GELU"}
    table = attribution_table(shares, kinds, np.array([2.0, -3.0, 3.0]))
    assert list(table.columns) == ["layer", "kind", "mean", "mean_abs"]
    assert list(table["layer"]) == ["large", "small", "(unattributed)"]
    assert list(table["kind"]) == ["GELU", "Linear", ""]
    # float32 shares are added in float64.
    np.testing.assert_allclose(table["mean"], [0.0, 0.1 / 3, 1.9 / 3], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(table["mean_abs"], [2.0, 0.1, (0.9 + 0.1 + 0.9) / 3], rtol=1e-6)


def test_table_knows_only_totals_where_a_share_is_a_total():
    shares = {
        "pooled": [torch.tensor(3.0), torch.tensor(1.0)],
        "fc": [torch.ones(2), torch.ones(1)],
    }
    table = attribution_table(
        shares, {"pooled": "Own", "fc": "Linear"}, np.array([2.0, 3.0, 4.0])
    ).set_index("layer")
    assert table["mean"]["pooled"] == pytest.approx(4 / 3)
    assert math.isnan(table["mean_abs"]["pooled"])
    assert table["mean"]["(unattributed)"] == pytest.approx((9 - 4 - 3) / 3)
    assert math.isnan(table["mean_abs"]["(unattributed)"])


def test_table_of_no_layers_has_the_gap_as_remainder():
    table = attribution_table({}, {}, np.array([1.0, -1.0]))
    assert list(table["layer"]) == ["(unattributed)"]
    assert table["mean"][0] == 0
    assert table["mean_abs"][0] == 1
