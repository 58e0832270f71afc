"""The second-order term against the loop over all pairs, closed forms and whole Hessians."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, case_named, every_case, make_problem
from oracles import mixture_moment, relabelled_components, softmax
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from theory.errors import InputError
from theory.losses import HEADS, loss_hessian, loss_hessian_factor
from theory.network import evaluating
from theory.regularizer import taylor_regularizer
from theory.second_order import curvature_term, estimated_curvature_term, gauss_newton_term

LAW = {"alpha": 0.4, "beta": 1.5}
SECOND_MOMENT = float(mixture_moment(relabelled_components(0.4, 1.5), 2))


def by_all_pairs(f, problem):
    """Second order alone, from a second derivative of the loss along every pair."""
    first, both = taylor_regularizer(
        f, problem.x, problem.targets, order=2, head=problem.head, **LAW
    )
    return both - first


@pytest.mark.parametrize("n", [4, 9])
@every_case
def test_the_two_parts_sum_to_the_loop_over_all_pairs(case, n):
    """Fewer partners than inputs have numbers, and more."""
    problem = make_problem(case, n=n)
    with evaluating(problem.model) as f:
        truth = by_all_pairs(f, problem)
        gauss_newton = gauss_newton_term(f, problem.x, problem.x, head=problem.head, **LAW)
        curvature = curvature_term(
            f, problem.x, problem.targets, problem.x, head=problem.head, **LAW
        )
    scale = truth.abs().max()
    assert scale > 1e-6
    torch.testing.assert_close(gauss_newton + curvature, truth, rtol=1e-10, atol=1e-10 * scale)
    assert (gauss_newton > 0).all()


RELU = [c for c in CASES if c.name in ("relu-mlp", "relu-conv-no-bias")]


@pytest.mark.parametrize("case", RELU, ids=lambda case: case.name)
def test_a_piecewise_linear_network_has_no_curvature_of_its_own(case):
    problem = make_problem(case, n=5)
    data = (problem.x, problem.targets, problem.x)
    with evaluating(problem.model) as f:
        assert (curvature_term(f, *data, **LAW) == 0).all()
        mean, sem = estimated_curvature_term(f, *data, probes=2, **LAW)
    assert (mean == 0).all()
    assert (sem == 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_linear_models_have_the_closed_form(head):
    """½E[a²] tr(H W (Cov x' + d dᵀ) Wᵀ) with d = x̄' − x, and partners that are other points."""
    torch.manual_seed(5)
    model = nn.Linear(3, 4).double()
    x, partners = torch.randn(5, 3).double(), torch.randn(11, 3).double() * 2 + 1
    y = torch.eye(4).double()[[0, 1, 2, 3, 0]]
    with evaluating(model) as f:
        got = gauss_newton_term(f, x, partners, head=head, rows=4, **LAW)
        assert (curvature_term(f, x, y, partners, head=head, **LAW) == 0).all()
    w, points = model.weight.detach().numpy(), partners.numpy()
    logits = model(x).detach().numpy()
    spread = np.cov(points.T, bias=True)
    for i in range(5):
        if head == "softmax":
            g = softmax(logits[i])
            hessian = np.diag(g) - np.outer(g, g)
        else:
            g = 1 / (1 + np.exp(-logits[i]))
            hessian = np.diag(g * (1 - g))
        d = points.mean(0) - x[i].numpy()
        truth = SECOND_MOMENT / 2 * np.trace(hessian @ w @ (spread + np.outer(d, d)) @ w.T)
        assert float(got[i]) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("name", ["layer-norm", "transformer", "gelu-conv-batch-norm"])
def test_each_part_equals_whole_jacobians_and_hessians(name):
    """By double backward, which does not pass through the forward rules that layer norm breaks."""
    problem = make_problem(case_named(name), n=3)
    x, size = problem.x, problem.x[0].numel()
    partners = make_problem(case_named(name), n=2 * size, seed=9).x
    v = (partners.flatten(1)[None] - x.flatten(1)[:, None]).numpy()
    with evaluating(problem.model) as f:
        gauss_newton = gauss_newton_term(f, x, partners, **LAW)
        curvature = curvature_term(f, x, problem.targets, partners, **LAW)
        for i in range(3):

            def one(z):
                return f(z.reshape(1, *x.shape[1:]))[0]

            g = one(x[i]).softmax(0).detach()
            jacobian = torch.autograd.functional.jacobian(one, x[i].flatten()).numpy()
            hessian = torch.autograd.functional.hessian(
                lambda z, i=i, g=g, one=one: (g - problem.targets[i]) @ one(z), x[i].flatten()
            ).numpy()
            h = (torch.diag(g) - torch.outer(g, g)).numpy()
            first, second = (
                SECOND_MOMENT / 2 * np.einsum("nd,de,ne->n", v[i], m, v[i]).mean()
                for m in (jacobian.T @ h @ jacobian, hessian)
            )
            assert float(gauss_newton[i]) == pytest.approx(first, rel=1e-10)
            assert float(curvature[i]) == pytest.approx(second, rel=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_the_factor_of_h_multiplies_out_to_h(head):
    logits = torch.randn(20, 5, dtype=torch.float64) * 6
    factor = loss_hessian_factor(logits, head)
    torch.testing.assert_close(
        factor @ factor.mT, loss_hessian(logits, head), rtol=1e-11, atol=1e-17
    )


def test_probes_are_unbiased_and_their_standard_error_is_right():
    """z-scores of 200 repeats: mean within 4.4 standard errors (false alarm 1e-5), size near 1."""
    problem = make_problem(case_named("tanh-mlp"), n=6)
    x, y = problem.x.repeat(200, 1), problem.targets.repeat(200, 1)
    generator = torch.Generator().manual_seed(0)
    with evaluating(problem.model) as f:
        truth = curvature_term(f, problem.x, problem.targets, problem.x, **LAW)
        means, sems = (
            part.reshape(200, 6)
            for part in estimated_curvature_term(
                f, x, y, problem.x, probes=40, generator=generator, rows=8192, **LAW
            )
        )
    z = (means - truth) / sems
    bound = stats.norm.isf(0.5e-5)
    assert float(z.mean().abs()) * math.sqrt(z.numel()) < bound * float(z.std())
    assert 0.9 < float(z.std()) < 1.2
    # Repeats scatter by what each of them states.
    torch.testing.assert_close(means.std(0), sems.square().mean(0).sqrt(), rtol=0.3, atol=0)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that was made, views of the partners aside."""

    def __init__(self, known):
        super().__init__()
        self.known, self.elements = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if not torch.is_tensor(tensor) or tensor._is_zerotensor():
                continue  # zeros without storage stand for tangents that vanish
            if tensor.untyped_storage().data_ptr() != self.known:
                self.elements = max(self.elements, tensor.numel())
        return out


def test_memory_does_not_grow_with_the_number_of_partners():
    problem = make_problem(case_named("relu-mlp"), n=5)
    largest = []
    with evaluating(problem.model) as f:
        for n in (500, 5000):
            partners = torch.randn(n, 2, 3, dtype=torch.float64)
            with LargestTensor(partners) as spy:
                gauss_newton_term(f, problem.x, partners, rows=64, **LAW)
                curvature_term(f, problem.x, problem.targets, partners, **LAW)
            largest.append(spy.elements)
    assert largest[0] == largest[1] < 500 * 6


def test_partners_of_low_rank_take_as_many_derivatives_as_their_rank():
    """Five examples, rank 2: five rows along x̄' − x, and ten along two axes."""
    problem = make_problem(case_named("tanh-mlp"), n=5)
    partners = torch.randn(40, 2).double() @ torch.randn(2, 5).double()
    batches = []
    with evaluating(problem.model) as f:

        def spy(z):
            batches.append(len(z))
            return f(z)

        curvature_term(spy, problem.x, problem.targets, partners, **LAW)
    assert sorted(set(batches)) == [5, 10]


def test_equal_partners_leave_only_the_step_towards_them():
    problem = make_problem(case_named("tanh-mlp"), n=4)
    partner = problem.x[:1] + 1
    with evaluating(problem.model) as f:
        one, many = (
            curvature_term(f, problem.x, problem.targets, partner.expand(k, -1), **LAW)
            for k in (1, 7)
        )
    torch.testing.assert_close(one, many, rtol=1e-12, atol=0)
    assert one.abs().min() > 0


def test_single_precision_is_near_double():
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=4)
    data = (problem.x, problem.targets, problem.x)
    with evaluating(problem.model) as f:
        double = gauss_newton_term(f, *data[::2], **LAW), curvature_term(f, *data, **LAW)
    data = tuple(t.float() for t in data)
    with evaluating(problem.model.float()) as f:
        single = gauss_newton_term(f, *data[::2], **LAW), curvature_term(f, *data, **LAW)
    for got, truth in zip(single, double, strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-6)


def test_bad_arguments_are_refused_in_one_line():
    problem = make_problem(case_named("tanh-mlp"))
    data = (problem.x, problem.targets, problem.x)
    with evaluating(problem.model) as f:
        for call, message in (
            (lambda: gauss_newton_term(f, problem.x, problem.x, alpha=0.0), "alpha is 0.0"),
            (lambda: curvature_term(f, *data, alpha=1.0, beta=-1.0), "beta is -1.0"),
            (lambda: gauss_newton_term(f, problem.x, problem.x[:0], alpha=1.0), "no partners"),
            (lambda: estimated_curvature_term(f, *data, alpha=1.0, probes=1), "probes is 1"),
            (lambda: gauss_newton_term(torch.detach, problem.x, problem.x, alpha=1.0), "depend"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=message) as caught:
                call()
            assert "\n" not in str(caught.value)


def test_examples_of_one_number_have_the_terms_of_columns_of_one():
    torch.manual_seed(0)
    column = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, targets = torch.randn(7, 1).double(), torch.randn(7, 3).double().softmax(1)

    def number(z):
        return column(z[:, None])

    torch.testing.assert_close(
        gauss_newton_term(number, x[:, 0], x[:, 0], **LAW),
        gauss_newton_term(column, x, x, **LAW),
    )
    torch.testing.assert_close(
        curvature_term(number, x[:, 0], targets, x[:, 0], **LAW),
        curvature_term(column, x, targets, x, **LAW),
    )
