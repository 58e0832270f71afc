"""Both expansions of R, the tangent's share and the remainders against closed forms and values."""

import inspect
import math

import numpy as np
import pytest
import torch
from cases import case_named, every_case, make_problem
from oracles import plain_loss
from torch import nn

from theory.errors import InputError
from theory.expansion import expand_regularizer, measure_remainders
from theory.losses import loss_hessian, probabilities
from theory.mixing import relabelled_law
from theory.network import evaluating
from theory.regularizer import regularizer
from theory.taylor import taylor_terms

SMOOTH = ["tanh-mlp", "layer-norm", "multi-label"]


@pytest.mark.parametrize("name", SMOOTH)
def test_second_order_of_both_expansions_in_closed_form(name):
    """The nested form adds E[a³] t₁ᵀH t₂ + E[a⁴] t₂ᵀH t₂/2 to the composite one at K = 2."""
    problem = make_problem(case_named(name), n=4)
    law = relabelled_law(0.7)
    with evaluating(problem.model) as f:
        got = expand_regularizer(
            f, problem.x, problem.targets, order=2, alpha=0.7, head=problem.head
        )
        n = len(problem.x)
        i = torch.arange(n).repeat_interleave(n)
        j = torch.arange(n).repeat(n)
        f0, t1, t2 = taylor_terms(f, problem.x[i], problem.x[j] - problem.x[i], 2, "nested")
    pull = probabilities(f0, problem.head) - problem.targets[i]
    hessian = loss_hessian(f0, problem.head)
    m1, m2, m3, m4 = (law.moment(k) for k in range(1, 5))

    def through(u, v):
        return torch.einsum("bc,bcd,bd->b", u, hessian, v)

    first = m1 * (pull * t1).sum(1)
    composite = first + m2 * ((pull * t2).sum(1) + through(t1, t1) / 2)
    nested = composite + m3 * through(t1, t2) + m4 * through(t2, t2) / 2
    for rows, truth in ((got.composite, (first, composite)), (got.nested, (first, nested))):
        for row, by_pair in zip(rows, truth, strict=True):
            torch.testing.assert_close(row, by_pair.reshape(n, n).mean(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh-mlp", "single-logit"])
def test_nested_expansion_at_order_three_by_nested_derivatives_of_h(name):
    problem = make_problem(case_named(name), n=3)
    order, alpha = 3, 1.0
    law = relabelled_law(alpha)
    with evaluating(problem.model) as f:
        got = expand_regularizer(
            f, problem.x, problem.targets, order=order, alpha=alpha, head=problem.head
        )
        n = len(problem.x)
        i, j = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
        terms = taylor_terms(f, problem.x[i], problem.x[j] - problem.x[i], order, "nested")
    y = problem.targets[i]
    total = torch.zeros(n * n).double()
    for a, weight in zip(*law.quadrature(12), strict=True):
        delta = sum(a**k * terms[k] for k in range(1, order + 1))
        h = taylor_terms(
            lambda z: (
                z.logsumexp(1, keepdim=True)
                if problem.head == "softmax"
                else nn.functional.softplus(z, threshold=40.0).sum(1, keepdim=True)
            ),
            terms[0], delta, order, "nested",
        )  # fmt: skip
        total += weight * (h[1:, :, 0].sum(0) - (delta * y).sum(1))
    torch.testing.assert_close(got.nested[2], total.reshape(n, n).mean(1), rtol=1e-9, atol=1e-12)


def test_more_orders_approach_r_where_all_of_the_law_lies_inside_the_radius():
    """Weights so small that the nearest singularity is far: R_K → R at a geometric rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    x, y = torch.randn(5, 4).double(), torch.eye(3)[torch.arange(5) % 3].double()
    with evaluating(model) as f:
        exact = regularizer(f, x, y, alpha=1.0, nodes=40)
        got = expand_regularizer(f, x, y, order=12, alpha=1.0)
    for rows in (got.composite, got.nested):
        errors = [float((row - exact).abs().max()) for row in rows]
        assert errors[11] < 1e-6 < errors[0]
        assert errors[11] < errors[7] < errors[3] < errors[0]
    assert not got.affine_pieces


@every_case
def test_tangent_and_pieces_of_every_network(case):
    problem = make_problem(case, n=3)
    with evaluating(problem.model) as f:
        got = expand_regularizer(
            f, problem.x, problem.targets, order=4, alpha=1.0, head=problem.head
        )
        n = len(problem.x)
        total = torch.zeros(n).double()
        for i in range(n):
            for j in range(n):
                base, slope = taylor_terms(
                    f, problem.x[i : i + 1], (problem.x[j] - problem.x[i])[None], 1, "nested"
                )
                y = problem.targets[i : i + 1]
                start = plain_loss(base, y, problem.head)
                for a, weight in zip(*relabelled_law(1.0).quadrature(48), strict=True):
                    change = plain_loss(base + a * slope, y, problem.head) - start
                    total[i] += weight * float(change) / n
    torch.testing.assert_close(got.tangent, total, rtol=1e-8, atol=1e-10)
    assert got.affine_pieces == (case.name in ("relu-mlp", "relu-conv-no-bias"))


def test_an_affine_network_is_all_tangent():
    torch.manual_seed(1)
    model = nn.Linear(5, 3).double()
    x, y = torch.randn(6, 5).double(), torch.rand(6, 3).double().softmax(1)
    with evaluating(model) as f:
        exact = regularizer(f, x, y, alpha=0.5, nodes=64)
        got = expand_regularizer(f, x, y, order=2, alpha=0.5)
    torch.testing.assert_close(got.tangent, exact, rtol=1e-9, atol=1e-12)
    assert got.affine_pieces


@pytest.mark.parametrize("name", ["tanh-mlp", "layer-norm", "single-logit"])
def test_remainders_of_smooth_networks_decay_like_the_next_power(name):
    problem = make_problem(case_named(name), n=3, seed=2)
    v = problem.mean - problem.x
    with evaluating(problem.model) as f:
        found = measure_remainders(
            f, problem.x, problem.targets, v, 3, np.geomspace(4e-3, 1, 25), problem.head
        )
    for remainder in (found.of_f, found.of_h, found.of_loss):
        np.testing.assert_allclose(found.exponent(remainder), [2, 3, 4], atol=0.12)


def test_remainders_are_differences_of_values():
    problem = make_problem(case_named("tanh-mlp"), n=3)
    x, y, v = problem.x, problem.targets, problem.mean - problem.x
    with torch.no_grad(), evaluating(problem.model) as f:
        found = measure_remainders(f, x, y, v, 2, np.array([0.3, 0.9]))
        f0, t1, t2 = taylor_terms(f, x, v, 2, "nested")
        g, hessian = probabilities(f0), loss_hessian(f0)
        for k, a in enumerate((0.3, 0.9)):
            there = f(x + a * v)
            delta = there - f0
            of_f = there - f0 - a * t1 - a * a * t2
            curved = torch.einsum("bc,bcd,bd->b", delta, hessian, delta) / 2
            of_h = there.logsumexp(1) - f0.logsumexp(1) - (g * delta).sum(1) - curved
            assert found.of_f[1, k] == pytest.approx(float(of_f.norm(dim=1).mean()), rel=1e-9)
            assert found.of_h[1, k] == pytest.approx(float(of_h.abs().mean()), rel=1e-9)
            bend = torch.einsum("bc,bcd,bd->b", t1, hessian, t1) / 2
            phi = plain_loss(f0, y, "softmax") + a * ((g - y) * t1).sum(1)
            of_loss = plain_loss(there, y, "softmax") - phi - a * a * (((g - y) * t2).sum(1) + bend)
            assert found.of_loss[1, k] == pytest.approx(float(of_loss.abs().mean()), rel=1e-9)


def test_remainders_of_a_relu_network_are_those_of_its_kinks():
    """Within the piece f has none at any order; beyond it they grow linearly, like f itself."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[2].bias.zero_()
    x, v = torch.tensor([[-0.25]]).double(), torch.tensor([[1.0]]).double()
    with evaluating(model) as f:
        a = np.array([0.1, 0.2, 0.5, 1.0])
        found = measure_remainders(f, x, torch.tensor([[1.0, 0.0]]).double(), v, 3, a)
    # f = relu(a − 1/4), and the series at a = 0 is zero.
    np.testing.assert_allclose(found.of_f, np.tile([0, 0, 0.25, 0.75], (3, 1)), atol=1e-14)
    assert np.isnan(found.exponent(found.of_f)).all()


def test_nothing_is_fitted_to_rounding():
    problem = make_problem(case_named("tanh-mlp"), n=3)
    with evaluating(problem.model) as f:
        found = measure_remainders(
            f, problem.x, problem.targets, problem.mean - problem.x, 3, np.geomspace(1e-9, 1e-6, 8)
        )
    assert math.isnan(found.exponent(found.of_f)[2])


def test_bad_settings_are_refused():
    problem = make_problem(case_named("tanh-mlp"))
    with evaluating(problem.model) as f:
        with pytest.raises(InputError, match="order of the expansion is 0"):
            expand_regularizer(f, problem.x, problem.targets, order=0, alpha=1.0)
        with pytest.raises(InputError, match="alpha is -1"):
            expand_regularizer(f, problem.x, problem.targets, order=2, alpha=-1.0)
        with pytest.raises(InputError, match="no examples"):
            inspect.unwrap(expand_regularizer)(
                f, problem.x[:0], problem.targets[:0], order=2, alpha=1.0
            )
