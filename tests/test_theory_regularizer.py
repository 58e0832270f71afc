"""Theorem 1 against triple loops with adaptive integration, Monte Carlo and closed forms."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, case_named, every_smooth_case, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    brute_mixup_risk,
    brute_regularizer,
    mixture_moment,
    plain_loss,
    relabelled_components,
    softmax,
)
from torch import nn

from theory.errors import InputError
from theory.first_order import first_order, pairwise_q
from theory.losses import HEADS, as_targets
from theory.network import evaluating
from theory.regularizer import (
    PairSettings,
    measure_theorem_1,
    mixup_risk,
    regularizer,
    standard_risk,
    taylor_regularizer,
)

LAWS = [(0.2, 0.2), (1.0, 1.0), (2.0, 2.0), (0.5, 3.0), (2.0, 0.7)]
every_law = pytest.mark.parametrize(("alpha", "beta"), LAWS)


def tiny_net(head, seed=0):
    """Two inputs, tanh, three logits; gentle enough for a quadrature of 16 nodes to be exact."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(3, 2).double()
    y = torch.rand(3, 3).double()
    if head == "softmax":
        y /= y.sum(1, keepdim=True)
    return model, x, y


@every_law
@pytest.mark.parametrize("head", HEADS)
def test_both_sides_equal_a_triple_loop_of_adaptive_integrals(alpha, beta, head):
    model, x, y = tiny_net(head)
    with evaluating(model) as f:
        got_mix = mixup_risk(f, x, y, alpha=alpha, beta=beta, head=head)
        got_r = regularizer(f, x, y, alpha=alpha, beta=beta, head=head)
        got_std = standard_risk(f, x, y, head)
        truth_mix = brute_mixup_risk(f, x, y, alpha, beta, head)
        truth_r = brute_regularizer(f, x, y, alpha, beta, head)
        truth_std = plain_loss(f(x), y, head).detach()
    np.testing.assert_allclose(got_mix, truth_mix, rtol=1e-9)
    np.testing.assert_allclose(got_r, truth_r, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(got_std, truth_std, rtol=1e-13)


def identity_error(f, x, y, alpha, beta, head, nodes):
    l_mix, r = (
        side(f, x, y, alpha=alpha, beta=beta, head=head, nodes=nodes).mean()
        for side in (mixup_risk, regularizer)
    )
    l_std = standard_risk(f, x, y, head).mean()
    return abs(float(l_mix - l_std - r)) / abs(float(l_mix))


@every_law
@pytest.mark.parametrize("soft", [True, False])
@every_smooth_case
def test_theorem_1_is_an_identity_on_smooth_networks(case, soft, alpha, beta):
    problem = make_problem(case, n=4, seed=3, soft=soft)
    # Where layer norm meets four nearly equal features the network bends sharply.
    nodes = 300 if case.name == "transformer" else 64
    with evaluating(problem.model) as f:
        error = identity_error(f, problem.x, problem.targets, alpha, beta, problem.head, nodes)
    assert error <= 1e-10


@given(
    seed=st.integers(0, 10**6),
    alpha=st.floats(0.1, 8),
    beta=st.floats(0.1, 8),
    head=st.sampled_from(HEADS),
    n=st.integers(1, 5),
    d=st.integers(1, 4),
    classes=st.integers(2, 5),
)
@settings(max_examples=25)
def test_theorem_1_holds_for_random_networks_laws_and_shapes(
    seed, alpha, beta, head, n, d, classes
):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    x = torch.randn(n, d).double()
    y = as_targets(torch.randint(classes, (n,)), classes, head, dtype=torch.float64)
    with evaluating(model) as f:
        assert identity_error(f, x, y, alpha, beta, head, nodes=32) <= 1e-10


@pytest.mark.parametrize("case", [c for c in CASES if not c.smooth], ids=lambda c: c.name)
def test_on_relu_networks_more_nodes_bring_the_sides_together(case):
    problem = make_problem(case, n=3)
    with evaluating(problem.model) as f:
        few, many = (
            identity_error(f, problem.x, problem.targets, 1.0, 1.0, problem.head, nodes=nodes)
            for nodes in (4, 64)
        )
    assert many < 1e-4
    assert many < few


def test_beta_in_place_of_the_relabelled_law_would_break_the_identity():
    """So the identity tests would see that confusion: λ uniform, α = 1, labels kept."""
    model, x, y = tiny_net("softmax")
    lam = (np.arange(64) + 0.5) / 64
    with torch.no_grad(), evaluating(model) as f:
        gap = float(mixup_risk(f, x, y, alpha=1.0).mean() - standard_risk(f, x, y).mean())
        wrong = np.mean(
            [
                float(plain_loss(f((s * x[i] + (1 - s) * x[j])[None]), y[i : i + 1], "softmax"))
                for i in range(3)
                for j in range(3)
                for s in lam
            ]
        ) - float(standard_risk(f, x, y).mean())
        right = float(regularizer(f, x, y, alpha=1.0).mean())
    assert right == pytest.approx(gap, rel=1e-9)
    assert wrong != pytest.approx(gap, rel=0.05)


@every_law
def test_monte_carlo_over_pairs_and_coefficients_agrees(alpha, beta):
    """What a training loop would average, from NumPy's own Beta generator."""
    problem = make_problem(case_named("tanh-mlp"), n=6, seed=4)
    x, y = problem.x, problem.targets
    rng = np.random.default_rng(7)
    draws = 40_000
    i, j = rng.integers(0, 6, (2, draws))
    lam = torch.from_numpy(rng.beta(alpha, beta, draws))[:, None]
    i, j = torch.from_numpy(i), torch.from_numpy(j)
    with torch.no_grad(), evaluating(problem.model) as f:
        values = plain_loss(
            f(lam * x[i] + (1 - lam) * x[j]), lam * y[i] + (1 - lam) * y[j], "softmax"
        ).numpy()
        l_mix = float(mixup_risk(f, x, y, alpha=alpha, beta=beta).mean())
        l_std = float(standard_risk(f, x, y).mean())
        r = float(regularizer(f, x, y, alpha=alpha, beta=beta).mean())
    standard_error = values.std() / math.sqrt(draws)
    assert abs(values.mean() - l_mix) < 4 * standard_error
    assert abs(values.mean() - l_std - r) < 4 * standard_error


def linear_problem():
    torch.manual_seed(5)
    model = nn.Linear(3, 4).double()
    x = torch.randn(5, 3).double()
    return model, x, torch.eye(4).double()[[0, 1, 2, 3, 0]]


@every_law
def test_linear_softmax_model_has_the_closed_form_to_second_order(alpha, beta):
    """R₁ᵢ = E[a](g−y)ᵀWd, R₂ᵢ = R₁ᵢ + ½E[a²] tr(H W(Cov x' + ddᵀ)Wᵀ), d = x̄ − xᵢ."""
    model, x, y = linear_problem()
    with evaluating(model) as f:
        got = taylor_regularizer(f, x, y, order=2, alpha=alpha, beta=beta).numpy()
    w, points = model.weight.detach().numpy(), x.numpy()
    g = softmax(points @ w.T + model.bias.detach().numpy())
    law = relabelled_components(alpha, beta)
    first, second = (float(mixture_moment(law, k)) for k in (1, 2))
    spread = np.cov(points.T, bias=True)
    for i in range(5):
        d = points.mean(0) - points[i]
        hessian = np.diag(g[i]) - np.outer(g[i], g[i])
        linear = first * (g[i] - y[i].numpy()) @ w @ d
        square = 0.5 * second * np.trace(hessian @ w @ (spread + np.outer(d, d)) @ w.T)
        assert got[0, i] == pytest.approx(linear, rel=1e-11)
        assert got[1, i] == pytest.approx(linear + square, rel=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_first_order_is_the_mean_share_times_q_towards_the_sample_mean(case):
    problem = make_problem(case)
    with evaluating(problem.model) as f:
        first = first_order(f, problem.x, problem.targets, problem.mean, problem.head)
        pairs = pairwise_q(f, problem.x, problem.targets, problem.x, problem.head)
        got = taylor_regularizer(
            f, problem.x, problem.targets, order=1, alpha=0.4, beta=1.5, head=problem.head
        )[0]
    mean_share = float(mixture_moment(relabelled_components(0.4, 1.5), 1))
    torch.testing.assert_close(got, mean_share * first.q, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, mean_share * pairs.mean(1), rtol=1e-9, atol=1e-12)


@every_law
def test_error_of_the_expansion_falls_like_the_next_power_of_the_spread(alpha, beta):
    """With all inputs scaled by s, R − R_K ~ s^{K+1} for every example."""
    model, x, y = tiny_net("softmax")
    scales = np.array([0.02, 0.03, 0.04])
    errors = []
    with evaluating(model) as f:
        for s in scales:
            r = regularizer(f, s * x, y, alpha=alpha, beta=beta)
            series = taylor_regularizer(f, s * x, y, order=3, alpha=alpha, beta=beta)
            errors.append((series - r).norm(dim=1).numpy())
    for order, error in enumerate(np.transpose(errors), start=1):
        assert error.min() > 1e-14  # clear of rounding
        assert np.polyfit(np.log(scales), np.log(error), 1)[0] == pytest.approx(order + 1, abs=0.1)


def test_a_loss_that_is_linear_along_segments_is_exact_at_first_order():
    """Equal logits: h is linear in x, and so is ℓ."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
        model.bias.zero_()
    x, y = torch.randn(4, 2).double(), torch.eye(2).double()[[0, 1, 0, 1]]
    with evaluating(model) as f:
        r = regularizer(f, x, y, alpha=0.7, beta=2.0)
        series = taylor_regularizer(f, x, y, order=2, alpha=0.7, beta=2.0)
    torch.testing.assert_close(series[0], r, rtol=0, atol=1e-13)
    torch.testing.assert_close(series[1], r, rtol=0, atol=1e-13)


class Spy:
    """Remembers the largest batch that goes through f."""

    def __init__(self, f):
        self.f, self.largest = f, 0

    def __call__(self, x):
        self.largest = max(self.largest, len(x))
        return self.f(x)


@pytest.mark.parametrize("n", [5, 20])
def test_the_batch_through_the_network_is_bounded_by_rows_not_by_n(n):
    problem = make_problem(case_named("tanh-mlp"), n=n)
    with evaluating(problem.model) as f:
        spy = Spy(f)
        mixup_risk(spy, problem.x, problem.targets, alpha=0.5, beta=2.0, rows=7)
        regularizer(spy, problem.x, problem.targets, alpha=0.5, beta=2.0, rows=7)
        taylor_regularizer(spy, problem.x, problem.targets, order=1, alpha=0.5, rows=7)
        standard_risk(spy, problem.x, problem.targets, rows=7)
    assert spy.largest <= 7


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_results_do_not_depend_on_the_chunking(rows):
    problem = make_problem(case_named("layer-norm"), n=4)
    data = (problem.x, problem.targets)
    law = {"alpha": 0.3, "beta": 1.2}
    with evaluating(problem.model) as f:
        for function, options in (
            (mixup_risk, law | {"nodes": 3}),
            (regularizer, law | {"nodes": 3}),
            (taylor_regularizer, law | {"order": 2}),
            (standard_risk, {}),
        ):
            torch.testing.assert_close(
                function(f, *data, rows=rows, **options),
                function(f, *data, **options),
                rtol=1e-12,
                atol=1e-14,
            )


def test_as_alpha_vanishes_so_does_r():
    """λ ~ D̃ goes to 1 as α → 0, at the rate of E[a] = α/(2α + 1)."""
    model, x, y = tiny_net("softmax")
    with evaluating(model) as f:
        sizes = [float(regularizer(f, x, y, alpha=a).abs().max()) for a in (1e-1, 1e-2, 1e-3)]
        l_mix = float(mixup_risk(f, x, y, alpha=1e-3).mean())
        l_std = float(standard_risk(f, x, y).mean())
    assert sizes[1] == pytest.approx(0.1 * sizes[0], rel=0.3)
    assert sizes[2] == pytest.approx(0.1 * sizes[1], rel=0.05)
    assert l_mix == pytest.approx(l_std, rel=1e-2)


def test_one_example_has_no_regularizer():
    model, x, y = tiny_net("sigmoid")
    with evaluating(model) as f:
        assert float(regularizer(f, x[:1], y[:1], alpha=1.0, head="sigmoid").abs()) < 1e-15
        assert (taylor_regularizer(f, x[:1], y[:1], order=3, alpha=1.0, head="sigmoid") == 0).all()


def test_single_precision_networks_are_averaged_in_double():
    model, x, y = tiny_net("softmax")
    with evaluating(model) as f:
        double = [side(f, x, y, alpha=1.0) for side in (mixup_risk, regularizer)]
        expansion = taylor_regularizer(f, x, y, order=2, alpha=1.0)
    with evaluating(model.float()) as f:
        x, y = x.float(), y.float()
        single = [side(f, x, y, alpha=1.0) for side in (mixup_risk, regularizer)]
        for got, truth in zip(
            (*single, taylor_regularizer(f, x, y, order=2, alpha=1.0)),
            (*double, expansion),
            strict=True,
        ):
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused_in_one_line():
    model, x, y = tiny_net("softmax")
    with evaluating(model) as f:
        for call, message in (
            (lambda: mixup_risk(f, x, y, alpha=0.0), "alpha is 0.0"),
            (lambda: regularizer(f, x, y, alpha=1.0, beta=-1.0), "beta is -1.0"),
            (lambda: taylor_regularizer(f, x, y, order=1, alpha=math.nan), "alpha is nan"),
            (lambda: taylor_regularizer(f, x, y, order=0, alpha=1.0), "order of the expansion"),
            (lambda: mixup_risk(f, x, y, alpha=1.0, nodes=0), "at least one node"),
            (lambda: mixup_risk(f, x[:0], y[:0], alpha=1.0), "no examples"),
            (lambda: regularizer(f, x[:0], y[:0], alpha=1.0), "no examples"),
            (lambda: taylor_regularizer(f, x[:0], y[:0], order=1, alpha=1.0), "no examples"),
        ):
            with pytest.raises(InputError, match=message) as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, None), (0.5, 3.0)])
def test_measurement_collects_both_sides_and_the_first_order(alpha, beta):
    problem = make_problem(case_named("tanh-mlp"), n=5)
    data = (problem.x, problem.targets)
    work = []
    with evaluating(problem.model) as f:
        settings = PairSettings(alpha, beta, nodes=12, batch_size=16)
        got = measure_theorem_1(f, *data, settings, on_progress=work.append)
        r = regularizer(f, *data, alpha=alpha, beta=beta, nodes=12)
        r_1 = taylor_regularizer(f, *data, order=1, alpha=alpha, beta=beta)[0]
        l_mix = float(mixup_risk(f, *data, alpha=alpha, beta=beta, nodes=12).mean())
    assert got["samples"] == 5
    assert got["l_mix"] == pytest.approx(l_mix, rel=1e-12)
    assert got["r"] == pytest.approx(float(r.mean()), rel=1e-12)
    assert got["l_mix"] == pytest.approx(got["l_std"] + got["r"], rel=1e-10)
    assert got["identity_error"] <= 1e-10
    assert got["quadrature_error"] <= 1e-8
    assert got["r1"] == pytest.approx(float(r_1.mean()), rel=1e-12)
    assert got["r_of_sample"] == pytest.approx(r.tolist(), rel=1e-10)
    assert got["r1_of_sample"] == pytest.approx(r_1.tolist(), rel=1e-10)
    assert got["first_order_pearson"] == pytest.approx(np.corrcoef(r, r_1)[0, 1], rel=1e-9)
    same = np.mean(np.sign(r.numpy()) == np.sign(r_1.numpy()))
    assert got["first_order_sign_agreement"] == pytest.approx(same)
    # The budget that chooses how many pairs to take counts the work that is then done, and the
    # estimate of R over all examples may take as much as both sides on all pairs.
    assert settings.draws(5) == pytest.approx(25 * settings.rows_per_pair, rel=0.01)
    assert sum(work) == pytest.approx(25 * settings.rows_per_pair, rel=0.01)


def test_quadrature_error_of_a_relu_net_bounds_the_gap_between_the_sides():
    problem = make_problem(case_named("relu-mlp"), n=6)
    with evaluating(problem.model) as f:
        got = measure_theorem_1(f, problem.x, problem.targets, PairSettings())
    assert 1e-10 < got["identity_error"] <= got["quadrature_error"]


@pytest.mark.parametrize("name", ["relu-mlp", "gelu-conv-batch-norm"])
def test_one_node_is_judged_by_another_rule_too(name):
    """Both sides err by what finer rules say, and the estimate of that is no zero."""
    problem = make_problem(case_named(name), n=5)
    with evaluating(problem.model) as f:
        got, fine = (
            measure_theorem_1(f, problem.x, problem.targets, PairSettings(nodes=nodes))
            for nodes in (1, 64)
        )
    error = (abs(got["l_mix"] - fine["l_mix"]) + abs(got["r"] - fine["r"])) / got["l_mix"]
    assert error > 1e-5
    assert got["quadrature_error"] > error / 2
    assert got["identity_error"] <= got["quadrature_error"]


def test_first_order_by_vjps_equals_that_by_jvps():
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=5)
    with evaluating(problem.model) as f:
        by_vjp, by_jvp = (
            taylor_regularizer(f, problem.x, problem.targets, order=order, alpha=0.7)[0]
            for order in (1, 2)
        )
    np.testing.assert_allclose(by_vjp, by_jvp, rtol=1e-10, atol=1e-14)
