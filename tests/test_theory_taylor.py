"""Taylor terms against 50-digit series, differences of values, and the decay of remainders."""

import inspect

import mpmath as mp
import numpy as np
import pytest
import torch
from cases import case_named, every_case, every_smooth_case, make_problem
from oracles import central, central_second, exact_rows, mp_loss, plain_loss
from torch import nn

from theory.errors import InputError
from theory.first_order import first_order
from theory.losses import HEADS
from theory.network import evaluating
from theory.taylor import loss_taylor_terms, taylor_terms


def mp_matrix(tensor):
    return mp.matrix(exact_rows(tensor.detach().reshape(len(tensor), -1)))


class WrittenOut:
    """A two-layer perceptron on the line x + a v, in 50-digit arithmetic."""

    def __init__(self, model, activation, x, v):
        self.w1, self.b1 = mp_matrix(model[0].weight), mp_matrix(model[0].bias)
        self.w2, self.b2 = mp_matrix(model[2].weight), mp_matrix(model[2].bias)
        self.activation, self.x, self.v = activation, mp_matrix(x), mp_matrix(v)

    def logits(self, a):
        z = self.w1 * (self.x + a * self.v) + self.b1
        return list(self.w2 * z.apply(self.activation) + self.b2)


ACTIVATIONS = {
    "tanh": (nn.Tanh(), mp.tanh),
    "softplus": (nn.Softplus(), lambda z: mp.log1p(mp.exp(z))),
    "sigmoid": (nn.Sigmoid(), lambda z: 1 / (1 + mp.exp(-z))),
    "silu": (nn.SiLU(), lambda z: z / (1 + mp.exp(-z))),
    "mish": (nn.Mish(), lambda z: z * mp.tanh(mp.log1p(mp.exp(z)))),
    "gelu": (nn.GELU(), lambda z: z * mp.ncdf(z)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_terms_to_order_four_equal_fifty_digit_series(name):
    torch.manual_seed(0)
    activation, exact_activation = ACTIVATIONS[name]
    model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).double()
    x, v = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    y = torch.tensor([[0.25, 0.75], [1.0, 0.0]]).double()
    with evaluating(model) as f:
        terms = taylor_terms(f, x, v, 4)
        losses = {head: loss_taylor_terms(f, x, y, v, 4, head) for head in HEADS}
    assert terms.shape == (5, 2, 2)
    for i in range(2):
        net = WrittenOut(model, exact_activation, x[i], v[i])
        for c in range(2):
            truth = mp.taylor(lambda a, net=net, c=c: net.logits(a)[c], 0, 4)
            np.testing.assert_allclose(terms[:, i, c], [float(t) for t in truth], rtol=1e-10)
        for head, got in losses.items():
            label = exact_rows(y[i : i + 1])[0]
            truth = mp.taylor(
                lambda a, net=net, label=label, head=head: mp_loss(net.logits(a), label, head),
                0,
                4,
            )
            np.testing.assert_allclose(got[:, i], [float(t) for t in truth], rtol=1e-10)


@every_case
def test_first_terms_are_the_loss_and_q(case):
    problem = make_problem(case)
    v = problem.mean - problem.x
    with evaluating(problem.model) as f:
        truth = first_order(f, problem.x, problem.targets, problem.mean, problem.head)
        got = loss_taylor_terms(f, problem.x, problem.targets, v, 1, problem.head)
        logits = taylor_terms(f, problem.x, v, 0)
        torch.testing.assert_close(logits[0], f(problem.x).detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(got[0], truth.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got[1], truth.q, rtol=1e-10, atol=1e-13)


@every_smooth_case
def test_second_and_third_terms_are_right_for_every_smooth_network(case):
    """Layer norm, instance norm, group norm and attention included."""
    problem = make_problem(case)
    x, v = problem.x, problem.mean - problem.x

    with evaluating(problem.model) as f:

        def along(a):
            return plain_loss(f(x + a * v), problem.targets, problem.head)

        def second_along(a):
            terms = loss_taylor_terms(f, x + a * v, problem.targets, v, 2, problem.head)
            return terms[2]

        got = loss_taylor_terms(f, x, problem.targets, v, 3, problem.head)
        second, third = central_second(along, h=2e-3) / 2, central(second_along) / 3
    torch.testing.assert_close(got[2], second, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[3], third, rtol=1e-7, atol=1e-8)


class OwnLayerNorm(nn.Module):
    """Layer norm written in elementary operations."""

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


class OwnInstanceNorm(nn.Module):
    """Instance norm written in elementary operations."""

    def forward(self, x):
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.pow(2).mean((2, 3), keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("norm", "own"),
    [
        (nn.LayerNorm(4, elementwise_affine=False), OwnLayerNorm()),
        (nn.InstanceNorm2d(2), OwnInstanceNorm()),
    ],
)
def test_norms_to_third_order_equal_hand_written_ones(norm, own):
    torch.manual_seed(1)
    head = nn.Linear(24, 3)
    x, v = torch.randn(4, 2, 3, 4).double(), torch.randn(4, 2, 3, 4).double()
    results = []
    for layer in (norm, own):
        model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), head).double()
        with evaluating(model) as f:
            results.append(taylor_terms(f, x, v, 3))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["tanh-mlp", "layer-norm", "transformer", "single-logit"])
def test_remainder_falls_like_the_next_power(name, order):
    """|f(x + a v) − T_K(a)| ~ a^{K+1}, and the same for the loss."""
    problem = make_problem(case_named(name), n=3, seed=2)
    x, v = problem.x, problem.mean - problem.x
    # Large enough to stand clear of rounding, small enough not to see the power after the next.
    a = {1: 2e-3, 2: 4e-3, 3: 7e-3}[order] * np.geomspace(1, 2, 4)
    with torch.no_grad(), evaluating(problem.model) as f:
        f_terms = taylor_terms(f, x, v, order)
        loss_terms = loss_taylor_terms(f, x, problem.targets, v, order, problem.head)
        powers = [torch.tensor([s**k for k in range(order + 1)]).double() for s in a]
        of_f = [
            (f(x + s * v) - torch.tensordot(p, f_terms, 1)).norm()
            for s, p in zip(a, powers, strict=True)
        ]
        of_loss = [
            (plain_loss(f(x + s * v), problem.targets, problem.head) - p @ loss_terms).norm()
            for s, p in zip(a, powers, strict=True)
        ]
    for remainder in (of_f, of_loss):
        size = np.array([float(r) for r in remainder])
        assert size.min() > 1e-13  # above the rounding of numbers near one
        slope = np.polyfit(np.log(a), np.log(size), 1)[0]
        assert slope == pytest.approx(order + 1, abs=0.05)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        z = self.fc(x)
        return torch.stack([z[:, 0] * z[:, 1], z[:, 2].square() + z[:, 3]], 1)


def test_a_quadratic_network_ends_at_order_two():
    torch.manual_seed(0)
    model = Quadratic().double()
    x, v = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    with evaluating(model) as f:
        terms = taylor_terms(f, x, v, 4)
        torch.testing.assert_close(
            terms[0] + 7 * terms[1] + 49 * terms[2], f(x + 7 * v).detach(), rtol=1e-12, atol=1e-11
        )
    assert (terms[3:] == 0).all()


def test_relu_series_is_that_of_the_linear_piece():
    problem = make_problem(case_named("relu-mlp"))
    v = torch.randn_like(problem.x)
    with evaluating(problem.model) as f:
        terms = taylor_terms(f, problem.x, v, 3)
        short = f(problem.x + 1e-6 * v).detach()
    assert (terms[2:] == 0).all()
    torch.testing.assert_close(terms[0] + 1e-6 * terms[1], short, rtol=0, atol=1e-13)


def test_batch_statistics_are_differentiated_once_and_refused_twice():
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=5)
    v = problem.mean - problem.x
    with evaluating(problem.model, "batch") as f:
        slope = central(lambda a: f(problem.x + a * v), h=1e-4)
        terms = taylor_terms(f, problem.x, v, 1)
        torch.testing.assert_close(terms[1], slope, rtol=1e-7, atol=1e-9)
        for engine, reason in (("series", "couple the examples"), ("nested", "186256")):
            with pytest.raises(InputError, match=f"batch statistics are refused.*{reason}") as e:
                taylor_terms(f, problem.x, v, 2, engine)
            assert "\n" not in str(e.value)
            with pytest.raises(InputError, match=f"batch statistics are refused.*{reason}"):
                loss_taylor_terms(f, problem.x, problem.targets, v, 2, engine=engine)


def test_sigmoid_series_is_finite_at_logits_of_ten_thousand():
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = torch.eye(2).double()
    x = torch.tensor([[1e4, -1e4], [-800.0, 90.0]]).double()
    y = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).double()
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        with evaluating(model) as f:
            for head in HEADS:
                terms = loss_taylor_terms(
                    f, x.to(dtype), y.to(dtype), torch.ones_like(x, dtype=dtype), 3, head
                )
                assert torch.isfinite(terms).all()
                assert terms[2:].abs().max() < 1e-12


def test_bad_arguments_are_refused():
    problem = make_problem(case_named("tanh-mlp"))
    with evaluating(problem.model) as f:
        with pytest.raises(InputError, match="order of a Taylor series is -1"):
            taylor_terms(f, problem.x, problem.x, -1)
        with pytest.raises(InputError, match="one direction an example"):
            inspect.unwrap(taylor_terms)(f, problem.x, problem.mean, 1)


def test_no_graph_is_kept():
    problem = make_problem(case_named("tanh-mlp"))
    with evaluating(problem.model) as f:
        assert not taylor_terms(f, problem.x, problem.x, 2).requires_grad


@pytest.mark.parametrize(
    "read", [torch.Tensor.item, float, lambda t: t.tolist(), lambda t: t.numpy()]
)
def test_a_number_read_out_of_a_tensor_is_refused_by_both_engines(read):
    """PyTorch's nested jvp would silently drop its dependence: of x·mean(x) the second term."""

    def f(x):
        return x * read(x.mean())

    x, v = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.ones(1, 3).double()
    truth = taylor_terms(lambda x: x * x.mean(1, keepdim=True), x, v, 2, "nested")
    torch.testing.assert_close(truth[1:, 0], torch.tensor([[3.0, 4, 5], [1, 1, 1]]).double())
    for engine in ("series", "nested"):
        with pytest.raises(InputError, match="reads a number out of a tensor"):
            taylor_terms(f, x, v, 2, engine)
