"""First-order terms against closed forms, whole Jacobians and differences of losses."""

import inspect

import pytest
import torch
from cases import case_named, every_case, make_problem, randomize_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import batch_jacobian, central, example_jacobians, plain_loss, softmax
from torch import nn

from theory.errors import InputError
from theory.first_order import (
    directional_q,
    first_order,
    first_order_coupled,
    loss_gradient,
    pairwise_q,
    q_hat,
)
from theory.network import evaluating


def close(got, truth):
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-12)


def residual_of(logits, problem):
    g = logits.softmax(1) if problem.head == "softmax" else logits.sigmoid()
    return g - problem.targets


@given(
    n=st.integers(1, 5), d=st.integers(1, 6), classes=st.integers(2, 5), seed=st.integers(0, 999)
)
@settings(max_examples=40)
def test_linear_softmax_model_has_the_closed_form(n, d, classes, seed):
    """q = (g − y)ᵀW(x̄ − x), q̂ = (y − g)ᵀ(Wx + b); the gaps are (g − y)ᵀWx̄ and (g − y)ᵀb."""
    torch.manual_seed(seed)
    model = nn.Linear(d, classes).double()
    x, mean = torch.randn(n, d).double(), torch.randn(d).double()
    labels = torch.randint(classes, (n,))
    y = torch.eye(classes, dtype=torch.float64)[labels]
    with evaluating(model) as f:
        got = first_order(f, x, y, mean)
    w, b = model.weight.detach().numpy(), model.bias.detach().numpy()
    logits = x.numpy() @ w.T + b
    u = softmax(logits) - y.numpy()
    for column, truth in (
        (got.q, (u * ((mean - x).numpy() @ w.T)).sum(1)),
        (got.q_hat, -(u * logits).sum(1)),
        (got.normalization_gap, u @ (w @ mean.numpy())),
        (got.homogeneity_gap, u @ b),
    ):
        close(column, torch.from_numpy(truth))


@every_case
def test_every_route_equals_the_explicit_jacobian(case):
    problem = make_problem(case)
    x, y, mean = problem.x, problem.targets, problem.mean + 0.2
    partners = torch.cat([x + 0.5, mean[None]])
    directions = torch.randn_like(x)
    with evaluating(problem.model) as f:
        logits = f(x).detach()
        jacobian = example_jacobians(f, x)
        got = first_order(f, x, y, mean, problem.head)
        coupled = first_order_coupled(f, x, y, mean, problem.head)
        logits_again, c = loss_gradient(f, x, y, problem.head)
        along = directional_q(f, x, y, directions, problem.head)
        pairs = pairwise_q(f, x, y, partners, problem.head)
    c_truth = torch.einsum("nc,ncd->nd", residual_of(logits, problem), jacobian)
    flat = x.flatten(1)
    close(logits_again.detach(), logits)
    close(c.flatten(1), c_truth)
    close(along, (c_truth * directions.flatten(1)).sum(1))
    close(pairs, c_truth @ partners.flatten(1).T - (c_truth * flat).sum(1, keepdim=True))
    close(pairs[:, -1], got.q)
    for terms in (got, coupled):
        close(terms.loss, plain_loss(logits, y, problem.head))
        close(terms.q, (c_truth * (mean.flatten() - flat)).sum(1))
        close(terms.q_hat, -(residual_of(logits, problem) * logits).sum(1))
        close(terms.normalization_gap, c_truth @ mean.flatten())
        close(
            terms.homogeneity_gap,
            (residual_of(logits, problem) * logits).sum(1) - (c_truth * flat).sum(1),
        )
        close(terms.q, terms.q_hat + terms.normalization_gap + terms.homogeneity_gap)


@every_case
def test_q_is_the_slope_of_the_loss_towards_the_mean(case):
    problem = make_problem(case, seed=1)
    x, mean = problem.x, problem.mean
    with evaluating(problem.model) as f:
        got = first_order(f, x, problem.targets, mean, problem.head)
        slope = central(
            lambda a: plain_loss(f(x + a * (mean - x)), problem.targets, problem.head), h=1e-5
        )
    torch.testing.assert_close(got.q, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_relu_without_biases_at_mean_zero_makes_q_hat_exact(seed):
    problem = make_problem(case_named("relu-conv-no-bias"), n=8, seed=seed)
    with evaluating(problem.model) as f:
        got = first_order(f, problem.x, problem.targets, torch.zeros_like(problem.mean))
    assert got.homogeneity_gap.abs().max() <= 1e-12
    assert got.normalization_gap.abs().max() == 0
    torch.testing.assert_close(got.q, got.q_hat, rtol=0, atol=1e-12)
    assert got.q.abs().min() > 1e-4  # not equal because all is zero


def test_biases_alone_break_q_hat():
    problem = make_problem(case_named("relu-mlp"))
    with evaluating(problem.model) as f:
        got = first_order(f, problem.x, problem.targets, torch.zeros_like(problem.mean))
    assert got.homogeneity_gap.abs().min() > 1e-3


COUPLED = ["gelu-conv-batch-norm", "inplace-residual"]


@pytest.mark.parametrize("name", COUPLED)
def test_batch_statistics_use_the_jacobian_of_the_whole_batch(name):
    problem = make_problem(case_named(name), n=5)
    x, y, mean = problem.x, problem.targets, problem.mean + 0.1
    with evaluating(problem.model, "batch") as f:
        logits = f(x).detach()
        got = first_order_coupled(f, x, y, mean, problem.head)
        jacobian = batch_jacobian(f, x)
        slope = central(lambda a: plain_loss(f(x + a * (mean - x)), y, problem.head), h=1e-5)
        uncoupled = first_order(f, x, y, mean, problem.head)
    u = residual_of(logits, problem)
    close(got.q, (u * (jacobian @ (mean - x).flatten())).sum(1))
    close(got.normalization_gap, (u * (jacobian @ mean.expand_as(x).flatten())).sum(1))
    close(got.homogeneity_gap, (u * (logits - jacobian @ x.flatten())).sum(1))
    close(got.q, got.q_hat + got.normalization_gap + got.homogeneity_gap)
    torch.testing.assert_close(got.q, slope, rtol=1e-6, atol=1e-8)
    # One vjp mixes the rows; only its total is that of the batch.
    close(uncoupled.q.sum(), got.q.sum())
    assert not torch.allclose(uncoupled.q, got.q, rtol=1e-2)


def test_in_evaluation_mode_an_example_does_not_feel_the_others():
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=5)
    with evaluating(problem.model) as f:
        together = first_order(f, problem.x, problem.targets, problem.mean)
        alone = first_order(f, problem.x[2:3], problem.targets[2:3], problem.mean)
    close(together.q[2:3], alone.q)


@given(
    scale=st.floats(-1e4, 1e4),
    seed=st.integers(0, 99),
    head=st.sampled_from(["softmax", "sigmoid"]),
)
@settings(max_examples=40)
def test_q_hat_is_finite_and_zero_for_the_predicted_label(scale, seed, head):
    logits = scale * torch.randn(
        3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    g = logits.softmax(1) if head == "softmax" else logits.sigmoid()
    assert (q_hat(logits, g, head) == 0).all()
    assert torch.isfinite(q_hat(logits, torch.full_like(g, 0.25), head)).all()


def test_results_carry_no_graph_unless_asked_for():
    problem = make_problem(case_named("tanh-mlp"))
    with evaluating(problem.model) as f:
        plain = first_order(f, problem.x, problem.targets, problem.mean)
        with_graph = first_order(f, problem.x, problem.targets, problem.mean, create_graph=True)
    assert not any(t.requires_grad for t in vars(plain).values())
    assert with_graph.q.requires_grad
    assert with_graph.q_hat.requires_grad
    assert not problem.x.requires_grad
    assert all(p.grad is None for p in problem.model.parameters())


def test_no_grad_around_the_call_and_frozen_parameters_change_nothing():
    problem = make_problem(case_named("gelu-conv-batch-norm"))
    with evaluating(problem.model) as f:
        free = first_order(f, problem.x, problem.targets, problem.mean).q
        problem.model.requires_grad_(False)
        with torch.no_grad():
            frozen = first_order(f, problem.x, problem.targets, problem.mean).q
    close(frozen, free)


def test_single_precision_agrees_with_double():
    problem = make_problem(case_named("gelu-conv-batch-norm"))
    with evaluating(problem.model) as f:
        double = first_order(f, problem.x, problem.targets, problem.mean)
    problem.model.float()
    with evaluating(problem.model) as f:
        single = first_order(f, problem.x.float(), problem.targets.float(), problem.mean.float())
    for name, column in vars(single).items():
        assert column.dtype == torch.float32
        torch.testing.assert_close(column.double(), getattr(double, name), rtol=1e-4, atol=1e-5)


def test_one_direction_an_example_is_required():
    problem = make_problem(case_named("tanh-mlp"))
    with (
        evaluating(problem.model) as f,
        pytest.raises(InputError, match="one direction an example"),
    ):
        inspect.unwrap(directional_q)(f, problem.x, problem.targets, problem.mean[None])


def test_a_recurrent_network_has_both_routes():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 4)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            hidden = x.new_zeros(len(x), 4)
            for step in x.unbind(1):
                hidden = self.cell(step, hidden)
            return self.fc(hidden)

    torch.manual_seed(0)
    model = randomize_norms(Recurrent()).double()
    x, y = torch.randn(4, 5, 3).double(), torch.eye(3).double()[[0, 1, 2, 0]]
    with evaluating(model) as f:
        slope = central(lambda a: plain_loss(f(x - a * x), y, "softmax"))
        torch.testing.assert_close(
            first_order(f, x, y, torch.zeros(5, 3).double()).q, slope, rtol=1e-8, atol=1e-10
        )
