"""Estimates of R against R itself on all pairs: bias, standard error, coverage, and the stop.

Every test of chance has fixed seeds and states how often it would fail on a right estimator.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import case_named, make_problem
from scipy import stats

import theory.expectation
from theory.errors import InputError
from theory.expectation import Sampling, sampled_regularizer
from theory.mixing import BetaMixture, beta_law
from theory.network import evaluating
from theory.regularizer import regularizer, standard_risk, taylor_regularizer

LAW = {"alpha": 0.4, "beta": 1.5}
REPEATS = 200
FALSE_ALARM = 1e-5  # of each test, two-sided
Z = stats.norm.isf(FALSE_ALARM / 2)


def confident():
    """A network that is sure of its labels, so that the loss rises along every segment."""
    problem = make_problem(case_named("tanh-mlp"), n=12, seed=4)
    with torch.no_grad():
        problem.model[2].weight *= 6
    with torch.no_grad(), evaluating(problem.model) as f:
        labels = f(problem.x).argmax(1)
    return replace(problem, targets=torch.eye(4, dtype=torch.float64)[labels])


def exact(f, problem, nodes=64, law=LAW):
    return float(
        regularizer(
            f, problem.x, problem.targets, head=problem.head, nodes=nodes, rows=8192, **law
        ).mean()
    )


def repeats(f, problem, sampling, count=REPEATS, seed=0, law=LAW):
    generator = torch.Generator().manual_seed(seed)
    return [
        sampled_regularizer(
            f, problem.x, problem.targets, sampling, head=problem.head, generator=generator, **law
        )
        for _ in range(count)
    ]


def in_float32(problem):
    return replace(
        problem,
        model=copy.deepcopy(problem.model).float(),
        x=problem.x.float(),
        targets=problem.targets.float(),
    )


def z_score(results, truth):
    """Of the mean of independent repeats, by their own scatter."""
    means = np.array([result.mean for result in results])
    return (means.mean() - truth) / means.std(ddof=1) * math.sqrt(len(means))


def coverage(results, truth, shrink=1.0):
    """Number of intervals, their half-widths multiplied by `shrink`, that hold the truth."""
    return sum(
        abs(truth - result.mean) <= shrink * (result.high - result.low) / 2 for result in results
    )


def binomial_bounds(count, share):
    return stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], count, share)


KINDS = [
    Sampling(draws=120, control="none", lam_strata=1),
    Sampling(draws=120, control="none", lam_strata=3),
    Sampling(draws=120, control="first-order", lam_strata=2),
    Sampling(draws=120, control="fitted", lam_strata=1),
    Sampling(draws=120, control="fitted", lam_strata=4),
]
every_kind = pytest.mark.parametrize("sampling", KINDS, ids=lambda s: f"{s.control}-{s.lam_strata}")


@every_kind
@pytest.mark.parametrize("name", ["relu-mlp", "multi-label"])
def test_estimates_are_unbiased_and_their_standard_errors_right(name, sampling):
    """z within 4.4 (false alarm 1e-5); repeats scatter by the sem that they state, to a fifth."""
    problem = make_problem(case_named(name), n=10, seed=4)
    with evaluating(problem.model) as f:
        truth = exact(f, problem)
        results = repeats(f, problem, sampling)
    assert abs(z_score(results, truth)) < Z
    stated = math.sqrt(np.mean([result.sem**2 for result in results]))
    assert np.std([result.mean for result in results]) == pytest.approx(stated, rel=0.2)


LAWS = [
    {"alpha": alpha, "beta": beta}
    for alpha, beta in (
        (1.0, 1.0), (0.1, 0.1), (1e-2, 1e-2), (1e-3, 1e-3), (1e-3, 2.0), (2.0, 1e-3), (0.3, 5.0),
        (30.0, 2.0), (200.0, 1.0),
    )
]  # fmt: skip


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law['alpha']:g}-{law['beta']:g}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_are_unbiased_and_near_r_whatever_the_law(law, dtype):
    """z within 4.4; 256 draws scatter by less than a fifth of R, at the smallest α too."""
    problem = confident()
    with evaluating(problem.model) as f:
        truth = exact(f, problem, law=law)
    problem = in_float32(problem) if dtype == torch.float32 else problem
    with evaluating(problem.model) as f:
        results = repeats(f, problem, Sampling(draws=256), count=60, law=law)
    assert abs(z_score(results, truth)) < Z
    assert np.std([result.mean for result in results]) < 0.2 * abs(truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-3, 1e-4])
def test_intervals_cover_r_where_nearly_all_of_the_law_is_at_zero(alpha, dtype):
    """300 intervals of 95 % from 416 draws each, within binomial bounds of false alarm 1e-5."""
    law = {"alpha": alpha}
    problem = make_problem(case_named("tanh-mlp"), n=32, seed=6)
    with evaluating(problem.model) as f:
        truth = exact(f, problem, nodes=24, law=law)
    problem = in_float32(problem) if dtype == torch.float32 else problem
    with evaluating(problem.model) as f:
        results = repeats(f, problem, Sampling(draws=416), count=300, law=law)
    low, high = binomial_bounds(300, 0.95)
    assert low >= 0.88 * 300
    assert low <= coverage(results, truth) <= high


def test_an_alpha_whose_square_is_no_number_changes_only_the_scale():
    """R/E[a] tends to a limit as α → 0, and so do both ends of the interval."""
    problem = confident()
    with evaluating(problem.model) as f:
        (small,) = repeats(f, problem, Sampling(draws=256), count=1, law={"alpha": 1e-9})
        (least,) = repeats(f, problem, Sampling(draws=256), count=1, law={"alpha": 1e-250})
    for name in ("mean", "sem", "low", "high", "first_order"):
        one, other = getattr(small, name), getattr(least, name)
        assert other * 1e241 == pytest.approx(one, rel=1e-6)
    assert least.sem > 0


@pytest.mark.parametrize(
    ("dtype", "concentration", "tolerance"),
    [
        # Forward passes in float32 that differ by ten to a hundred roundings.
        (torch.float32, 1e5, 0.1),
        (torch.float32, 1e6, 0.1),
        (torch.float32, 1e7, 1e-3),
        (torch.float32, 1e9, 1e-3),
        (torch.float32, 1e20, 1e-3),
        (torch.float64, 1e6, 1e-3),
        (torch.float64, 1e15, 1e-3),
        (torch.float64, 1e20, 1e-3),
    ],
)
def test_shares_that_rounding_swallows_leave_the_first_order(
    monkeypatch, dtype, concentration, tolerance
):
    """a of mean 1/concentration, down to where x + a(x' − x) is x and a itself rounds to zero."""
    law = BetaMixture(((1.0, concentration, 1.0),))
    monkeypatch.setattr(theory.expectation, "relabelled_law", lambda alpha, beta: law)
    problem = confident()
    problem = in_float32(problem) if dtype == torch.float32 else problem
    with evaluating(problem.model) as f:
        # Ten stages of twelve strata, one an example: the first order is known exactly.
        sampling = Sampling(draws=960, control="first-order")
        (result,) = repeats(f, problem, sampling, count=1)
    assert result.first_order * concentration == pytest.approx(mean_slope(problem), rel=1e-4)
    assert result.mean == pytest.approx(result.first_order, rel=tolerance)


def mean_slope(problem):
    """1/n Σ (g − y)ᵀJ(x̄ − x), by central differences in float64."""
    model, x = copy.deepcopy(problem.model).double(), problem.x.double()
    y, v, h = problem.targets.double(), x.mean(0) - x, 1e-6
    with torch.no_grad(), evaluating(model) as f:
        return float((standard_risk(f, x + h * v, y) - standard_risk(f, x - h * v, y)).mean()) / (
            2 * h
        )


def test_examples_beyond_the_number_of_strata_are_sampled_without_bias():
    """120 examples and 8 strata of 2 units each: most examples are in no draw."""
    problem = make_problem(case_named("tanh-mlp"), n=120, seed=5)
    sampling = Sampling(draws=64, lam_strata=4)
    with evaluating(problem.model) as f:
        truth = exact(f, problem, nodes=12)
        results = repeats(f, problem, sampling)
    assert abs(z_score(results, truth)) < Z
    assert {result.draws for result in results} == {64}
    covered = coverage(results, truth)
    assert covered >= binomial_bounds(REPEATS, 0.93)[0]


def test_the_z_test_sees_a_law_that_is_not_relabelled(monkeypatch):
    problem = confident()
    monkeypatch.setattr(theory.expectation, "relabelled_law", beta_law)
    with evaluating(problem.model) as f:
        truth = exact(f, problem)
        results = repeats(f, problem, KINDS[-1], count=60)
    assert abs(z_score(results, truth)) > Z


BIASED = {
    "means that are too large": lambda means: means + means.abs().mean(),
    # Which sum to the same, but not over the half of the strata that shares a θ.
    "one mean for all examples": lambda means: means.mean().expand(len(means)),
}


@pytest.mark.parametrize("change", BIASED.values(), ids=BIASED.keys())
def test_the_z_test_sees_a_control_variate_with_a_wrong_mean(monkeypatch, change):
    problem = make_problem(case_named("relu-mlp"), n=10, seed=4)
    build = theory.expectation._Problem

    def changed(*args):
        made = build(*args)
        made.first_order = change(made.first_order)
        return made

    monkeypatch.setattr(theory.expectation, "_Problem", changed)
    with evaluating(problem.model) as f:
        truth = exact(f, problem)
        results = repeats(f, problem, Sampling(draws=120, lam_strata=1))
    assert abs(z_score(results, truth)) > Z


@pytest.mark.parametrize("name", ["tanh-mlp", "relu-mlp"])
def test_intervals_cover_r_as_often_as_they_say(name):
    """400 intervals of 95 % within binomial bounds of false alarm 1e-5; at 0.6 of it they fail."""
    problem = make_problem(case_named(name), n=16, seed=6)
    with evaluating(problem.model) as f:
        truth = exact(f, problem)
        results = repeats(f, problem, Sampling(draws=512), count=400)
    low, high = binomial_bounds(400, 0.95)
    assert low <= coverage(results, truth) <= high
    assert coverage(results, truth, shrink=0.6) < low


def test_variance_reduction_is_that_over_plain_draws_at_equal_passes():
    """Plain Monte Carlo's variance by quadrature over all pairs, ours by 400 repeats."""
    problem = make_problem(case_named("tanh-mlp"), n=8, seed=4)
    x, y = problem.x, problem.targets
    with evaluating(problem.model) as f:
        truth = exact(f, problem)
        points, weights = theory.expectation.relabelled_law(**LAW).quadrature(40)
        start = standard_risk(f, x, y)
        square = 0.0
        for a, w in zip(points, weights, strict=True):
            for j in range(8):
                moved = standard_risk(f, x + a * (x[j] - x), y)
                square += w / 8 * float((moved - start).square().mean())
        results = repeats(f, problem, Sampling(draws=256), count=400)
    passes = 256 + theory.expectation.VJP_WORK * 8
    ours = np.var([result.mean for result in results], ddof=1)
    measured = (square - truth**2) / passes / ours
    # 1/sem² is on average more than one over the average sem², with 8 strata by a quarter.
    stated = 1 / np.mean([1 / result.variance_reduction for result in results])
    assert stated == pytest.approx(measured, rel=0.15)
    assert stated > 10


def stated_sem(f, problem, sampling):
    return math.sqrt(np.mean([result.sem**2 for result in repeats(f, problem, sampling, count=40)]))


def test_strata_of_lambda_lower_the_variance():
    """Where Δ(a)/a depends on a and not on the partner: a radial f on orthogonal examples."""
    problem = replace(
        confident(), x=torch.eye(32).double(), targets=torch.eye(2).double()[[0] * 32]
    )

    def f(x):
        norm = x.square().sum(1)
        return torch.stack([3 * norm, 0 * norm], 1)

    sems = [
        stated_sem(f, problem, Sampling(draws=240, control="none", lam_strata=k)) for k in (1, 4)
    ]
    assert sems[1] < 0.9 * sems[0]


def test_the_control_variate_lowers_the_variance():
    problem = confident()
    with evaluating(problem.model) as f:
        sems = [
            stated_sem(f, problem, Sampling(draws=240, control=control))
            for control in ("none", "fitted")
        ]
    assert sems[1] < 0.9 * sems[0]


def test_the_first_order_is_exact_and_theta_near_one_where_it_is_nearly_all():
    problem = make_problem(case_named("tanh-mlp"), n=10, seed=4)
    with torch.no_grad():
        problem.model[0].weight *= 0.05
    with evaluating(problem.model) as f:
        (result,) = repeats(f, problem, Sampling(draws=400), count=1)
        truth = taylor_regularizer(f, problem.x, problem.targets, order=1, **LAW)[0].mean()
    assert result.first_order == pytest.approx(float(truth), rel=1e-12)
    assert result.coefficient == pytest.approx(1, abs=0.05)


def test_a_tolerance_is_reached_in_few_looks_and_its_intervals_still_cover():
    """Stopped intervals cover a little less often than 95 %: 0.92 is asked of 200."""
    problem = confident()
    sampling = Sampling(draws=200, tolerance=0.12)
    with evaluating(problem.model) as f:
        truth = exact(f, problem)
        results = repeats(f, problem, sampling)
    for result in results:
        assert result.met
        assert (result.high - result.low) / 2 <= 0.12 * abs(result.mean)
    assert np.median([result.draws for result in results]) > 300
    assert coverage(results, truth) >= binomial_bounds(REPEATS, 0.92)[0]
    assert abs(np.mean([result.mean for result in results]) / truth - 1) < 0.01


def test_a_tolerance_that_cannot_be_reached_is_given_up():
    problem = make_problem(case_named("relu-mlp"), n=6)
    with evaluating(problem.model) as f:
        (result,) = repeats(f, problem, Sampling(draws=100, tolerance=1e-9, most=1000), count=1)
    assert not result.met
    assert 900 <= result.draws < 1100


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_seeds_fix_the_draws_and_pieces_do_not_matter(rows):
    problem = make_problem(case_named("layer-norm"), n=5)

    def run(seed, rows):
        with evaluating(problem.model) as f:
            return sampled_regularizer(
                f, problem.x, problem.targets, Sampling(draws=64), rows=rows,
                generator=torch.Generator().manual_seed(seed), **LAW,
            )  # fmt: skip

    assert run(0, rows).mean == pytest.approx(run(0, 256).mean, rel=1e-12)
    assert run(0, rows).mean != pytest.approx(run(1, 256).mean, rel=1e-3)


def test_progress_is_the_work_that_was_done():
    problem = make_problem(case_named("tanh-mlp"), n=10)
    work = []
    with evaluating(problem.model) as f:
        result = sampled_regularizer(
            f, problem.x, problem.targets, Sampling(draws=500), on_progress=work.append, **LAW
        )
    assert sum(work) == pytest.approx(result.draws + theory.expectation.VJP_WORK * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_example_or_equal_ones_have_no_regularizer(dtype):
    problem = make_problem(case_named("tanh-mlp"), n=1)
    model = problem.model.to(dtype)
    with evaluating(model) as f:
        for n in (1, 5):
            result = sampled_regularizer(
                f, problem.x.to(dtype).expand(n, -1), problem.targets.to(dtype).expand(n, -1),
                Sampling(draws=50), **LAW,
            )  # fmt: skip
            assert result.mean == result.sem == result.low == result.high == 0


def test_bad_arguments_are_refused_in_one_line():
    problem = make_problem(case_named("tanh-mlp"))
    with evaluating(problem.model) as f:
        for call, message in (
            (lambda: Sampling(draws=0), "draws is 0"),
            (lambda: Sampling(lam_strata=0), "lam_strata is 0"),
            (lambda: Sampling(tolerance=0.0), "tolerance is 0"),
            (lambda: Sampling(tolerance=math.nan), "tolerance is nan"),
            (
                lambda: sampled_regularizer(f, problem.x, problem.targets, Sampling(), alpha=-1.0),
                "alpha is -1",
            ),
            (
                lambda: sampled_regularizer(
                    f, problem.x[:0], problem.targets[:0], Sampling(), alpha=1.0
                ),
                "no examples",
            ),
        ):
            with pytest.raises(InputError, match=message) as caught:
                call()
            assert "\n" not in str(caught.value)


def test_an_unknown_control_is_refused(monkeypatch):
    """As users run it, without the suite's type checker."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match="unknown control variate 'second'"):
        Sampling(control="second")
