"""Parameter gradients of the penalties against central differences, and their cosines."""

import math

import pytest
import torch
from cases import case_named, every_smooth_case, make_problem
from oracles import central
from torch import nn

from theory.alignment import gradient_alignment
from theory.errors import InputError
from theory.first_order import first_order, first_order_coupled
from theory.network import evaluating


def penalties(model, problem, mode):
    """Mean q, q̂, |q| and |q̂| as numbers, by the first-order routines (tested on their own)."""
    measure = first_order if mode == "eval" else first_order_coupled
    with evaluating(model, mode) as f:
        terms = measure(f, problem.x, problem.targets, problem.mean, problem.head)
    return torch.stack([v.mean() for v in (terms.q, terms.q_hat, terms.q.abs(), terms.q_hat.abs())])


def explicit_gradients(model, problem, mode):
    """Gradient of each of the four by central differences, parameter by parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    columns = []
    for p in parameters:
        flat = p.data.view(-1)
        for k in range(flat.numel()):
            start = float(flat[k])

            def moved(t, flat=flat, k=k, start=start):
                flat[k] = start + t
                values = penalties(model, problem, mode)
                flat[k] = start
                return values

            columns.append(central(moved, h=1e-3))
    return torch.stack(columns, 1)


def table_of(problem, mode="eval", batches=None):
    with evaluating(problem.model, mode) as f:
        return gradient_alignment(
            problem.model,
            f,
            batches or [(problem.x, problem.targets)],
            problem.mean,
            problem.head,
            coupled=mode == "batch",
        )


def small_conv_problem():
    """Few enough parameters to differentiate one by one, with batch norm."""
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=5)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, stride=2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 1.5)
    return type(problem)(**(vars(problem) | {"model": model}))


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_cosines_and_norms_equal_those_of_central_differences(mode):
    problem = small_conv_problem()
    q, q_hat, abs_q, abs_q_hat = explicit_gradients(problem.model, problem, mode)
    table = table_of(problem, mode)
    sizes = {"(all)": q.numel(), "0": 38, "1": 4, "4": 27}
    assert list(table["layer"]) == list(sizes)
    ends = {"(all)": slice(None), "0": slice(0, 38), "1": slice(38, 42), "4": slice(42, None)}
    for row in table.itertuples():
        part = ends[row.layer]
        assert q[part].numel() == sizes[row.layer]
        similarity = torch.nn.functional.cosine_similarity
        assert row.cosine_q == pytest.approx(
            float(similarity(q[part], q_hat[part], dim=0)), abs=1e-8
        )
        assert row.cosine_abs_q == pytest.approx(
            float(similarity(abs_q[part], abs_q_hat[part], dim=0)), abs=1e-8
        )
        assert row.norm_q == pytest.approx(float(q[part].norm()), rel=1e-7)
        assert row.norm_q_hat == pytest.approx(float(q_hat[part].norm()), rel=1e-7)


@every_smooth_case
def test_norms_are_those_of_the_mean_penalties(case):
    """‖∇ mean q‖ by the slope along ∇ mean q̂'s and ∇ mean q's own directions."""
    problem = make_problem(case)
    table = table_of(problem)
    parameters = list(problem.model.parameters())
    with evaluating(problem.model) as f:
        terms = first_order(
            f, problem.x, problem.targets, problem.mean, problem.head, create_graph=True
        )
        gradients = [
            torch.autograd.grad(value.mean(), parameters, retain_graph=True, allow_unused=True)
            for value in (terms.q, terms.q_hat)
        ]
    directions = [
        [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]
        for gradient in gradients
    ]
    norms = [math.sqrt(sum(float(d.square().sum()) for d in each)) for each in directions]
    starts = [p.detach().clone() for p in parameters]

    def moved_along(direction, norm):
        def moved(t):
            for p, start, d in zip(parameters, starts, direction, strict=True):
                p.data.copy_(start + t * d / norm)
            values = penalties(problem.model, problem, "eval")
            for p, start in zip(parameters, starts, strict=True):
                p.data.copy_(start)
            return values

        return moved

    slope_q = central(moved_along(directions[0], norms[0]), h=1e-3)
    slope_q_hat = central(moved_along(directions[1], norms[1]), h=1e-3)
    # Along a gradient the slope is its norm; along the other's, the norm times the cosine.
    assert table["norm_q"][0] == pytest.approx(float(slope_q[0]), rel=1e-6)
    assert table["norm_q_hat"][0] == pytest.approx(float(slope_q_hat[1]), rel=1e-6)
    assert table["cosine_q"][0] == pytest.approx(float(slope_q_hat[0]) / norms[0], abs=1e-6)


def test_batches_are_averaged_by_their_sizes():
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=5)
    whole = table_of(problem)
    pieces = table_of(
        problem, batches=zip(problem.x.split(2), problem.targets.split(2), strict=True)
    )
    assert list(whole["layer"]) == list(pieces["layer"])
    for name in ("cosine_q", "cosine_abs_q", "norm_q", "norm_q_hat"):
        assert list(pieces[name]) == pytest.approx(list(whole[name]), rel=1e-9, nan_ok=True)


def test_a_relu_net_without_biases_at_mean_zero_is_aligned():
    problem = make_problem(case_named("relu-conv-no-bias"), n=6)
    with evaluating(problem.model) as f:
        table = gradient_alignment(
            problem.model,
            f,
            [(problem.x, problem.targets)],
            torch.zeros_like(problem.mean),
        )
    assert table["cosine_q"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert table["cosine_abs_q"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert table["norm_q"].to_numpy() == pytest.approx(table["norm_q_hat"].to_numpy(), rel=1e-12)


def test_only_trainable_parameters_are_compared_and_hand_held_ones_have_a_row():
    problem = make_problem(case_named("functional"))
    assert set(table_of(problem)["layer"]) == {"(all)", "(model)", "fc"}
    problem.model.fc.requires_grad_(False)
    assert set(table_of(problem)["layer"]) == {"(all)", "(model)"}


def test_an_unused_parameter_has_no_cosine():
    problem = make_problem(case_named("tanh-mlp"))
    problem.model.register_module("spare", nn.Linear(2, 2).double())
    problem.model.forward = lambda x: problem.model[2](problem.model[1](problem.model[0](x)))
    row = table_of(problem).set_index("layer").loc["spare"]
    assert math.isnan(row["cosine_q"])
    assert row["norm_q"] == 0


def test_gradients_of_the_parameters_stay_as_the_user_has_them():
    problem = make_problem(case_named("tanh-mlp"))
    table_of(problem)
    assert all(p.grad is None for p in problem.model.parameters())


def test_a_model_without_trainable_parameters_is_refused():
    problem = make_problem(case_named("tanh-mlp"))
    problem.model.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        table_of(problem)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 2 * z * gradient


def test_an_operation_without_a_second_derivative_is_refused_in_one_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 4)

        def forward(self, x):
            return OnceDifferentiable.apply(self.fc(x))

    problem = make_problem(case_named("tanh-mlp"))
    model = Net().double()
    with (
        evaluating(model) as f,
        pytest.raises(InputError, match="no second derivative") as caught,
    ):
        gradient_alignment(model, f, [(problem.x, problem.targets)], problem.mean)
    assert "\n" not in str(caught.value)


def test_a_layer_whose_penalty_has_no_gradient_has_no_cosine():
    problem = make_problem(case_named("functional"))
    unused = nn.Linear(2, 2).double()
    problem.model.add_module("unused", unused)
    row = table_of(problem).set_index("layer").loc["unused"]
    assert math.isnan(row["cosine_q"])
    assert math.isnan(row["cosine_abs_q"])
    assert row["norm_q"] == row["norm_q_hat"] == 0


def test_known_signs_spare_a_pass_and_change_nothing():
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=7)
    with evaluating(problem.model) as f:
        terms = first_order(f, problem.x, problem.targets, problem.mean, problem.head)
        signs = torch.stack([terms.q.sign(), terms.q_hat.sign()], 1)
        calls = []

        def counted(x):
            calls.append(len(x))
            return f(x)

        batches = list(zip(problem.x.split(3), problem.targets.split(3), strict=True))
        given = gradient_alignment(
            problem.model, counted, batches, problem.mean, problem.head, signs=signs
        )
    assert sum(calls) == 7
    found = table_of(problem, batches=batches)
    for name in ("cosine_q", "cosine_abs_q", "norm_q", "norm_q_hat"):
        assert list(given[name]) == pytest.approx(list(found[name]), rel=1e-12)
