"""The laws of λ against Beta functions in 50 digits, adaptive integration and scipy's tests."""

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import beta_density, expectation, mixture_moment, relabelled_components
from scipy import stats

from theory.errors import InputError
from theory.mixing import BetaMixture, beta_law, relabelled_law

PARAMETERS = [(a, a) for a in (0.05, 0.2, 1.0, 2.0, 50.0)] + [(0.5, 3.0), (2.0, 0.7), (0.05, 20.0)]
every_law = pytest.mark.parametrize(("alpha", "beta"), PARAMETERS)
positive = st.floats(0.02, 60)


def components(alpha, beta, relabelled):
    if relabelled:
        return relabelled_components(alpha, beta)
    return [(mp.mpf(1), mp.mpf(alpha), mp.mpf(beta))]


def law_of(alpha, beta, relabelled):
    return relabelled_law(alpha, beta) if relabelled else beta_law(alpha, beta)


@given(alpha=positive, beta=positive, relabelled=st.booleans(), k=st.integers(0, 12))
@settings(max_examples=150)
def test_moments_are_ratios_of_beta_functions(alpha, beta, relabelled, k):
    truth = float(mixture_moment(components(alpha, beta, relabelled), k))
    assert law_of(alpha, beta, relabelled).moment(k) == pytest.approx(truth, rel=1e-13)


@every_law
@pytest.mark.parametrize("relabelled", [False, True])
def test_moments_equal_adaptive_integrals(alpha, beta, relabelled):
    law = law_of(alpha, beta, relabelled)
    for k in (1, 2, 5):
        integral = sum(
            float(w) * expectation(lambda lam, k=k: (1 - lam) ** k, float(p), float(q))
            for w, p, q in components(alpha, beta, relabelled)
        )
        assert law.moment(k) == pytest.approx(integral, rel=1e-9)


def test_mean_share_of_the_second_example_is_alpha_over_two_alpha_plus_one():
    for alpha in (0.2, 1.0, 7.0):
        assert relabelled_law(alpha).moment(1) == pytest.approx(alpha / (2 * alpha + 1), rel=1e-14)
        assert len(relabelled_law(alpha).components) == 1


@given(alpha=positive, beta=positive, lam=st.floats(0.001, 0.999))
@settings(max_examples=80)
def test_relabelled_density_weighs_beta_by_the_label_that_is_kept(alpha, beta, lam):
    """D̃(λ) = λ·Beta(λ; α, β) + λ·Beta(1−λ; α, β): i is first and keeps its label, or second."""
    lam = mp.mpf(lam)
    coin = lam * beta_density(lam, mp.mpf(alpha), mp.mpf(beta)) + lam * beta_density(
        1 - lam, mp.mpf(alpha), mp.mpf(beta)
    )
    got = mp.fsum(
        mp.mpf(w) * beta_density(lam, mp.mpf(p), mp.mpf(q))
        for w, p, q in relabelled_law(alpha, beta).components
    )
    assert abs(got - coin) <= mp.mpf(1e-14) * coin


@given(alpha=positive, beta=positive, lam=st.floats(0.001, 0.999), relabelled=st.booleans())
@settings(max_examples=80)
def test_size_biased_density_is_a_times_the_density(alpha, beta, lam, relabelled):
    law, lam = components(alpha, beta, relabelled), mp.mpf(lam)
    truth = mp.fsum((1 - lam) * w * beta_density(lam, p, q) for w, p, q in law)
    truth /= mixture_moment(law, 1)
    biased = law_of(alpha, beta, relabelled).size_biased()
    got = mp.fsum(
        mp.mpf(w) * beta_density(lam, mp.mpf(p), mp.mpf(q)) for w, p, q in biased.components
    )
    assert abs(got - truth) <= mp.mpf(1e-13) * truth
    assert sum(w for w, _, _ in biased.components) == pytest.approx(1, abs=1e-15)


def test_size_biased_law_of_the_smallest_alpha_is_uniform():
    ((weight, p, q),) = relabelled_law(1e-310).size_biased().components
    assert (weight, p, q) == (1.0, 1.0, 1.0)


def test_size_biased_law_without_a_mean_is_refused():
    with pytest.raises(InputError, match="too far from one"):
        relabelled_law(1e308).size_biased()


@every_law
@pytest.mark.parametrize("relabelled", [False, True])
@pytest.mark.parametrize("nodes", [1, 2, 5, 16])
def test_quadrature_is_exact_up_to_degree_twice_the_nodes_less_one(alpha, beta, relabelled, nodes):
    a, weights = law_of(alpha, beta, relabelled).quadrature(nodes)
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    assert (weights > 0).all()
    assert ((a > 0) & (a < 1)).all()
    for degree in range(2 * nodes):
        truth = float(mixture_moment(components(alpha, beta, relabelled), degree))
        # Nodes next to a singular end are known to some 1e-11 of their weight.
        assert (weights * a**degree).sum() == pytest.approx(truth, rel=1e-10)


def test_quadrature_is_not_exact_beyond_its_degree():
    """So the test above would notice a rule with too many nodes."""
    a, weights = beta_law(1.0).quadrature(3)
    assert (weights * a**6).sum() != pytest.approx(1 / 7, rel=1e-5)


@given(alpha=st.floats(0.1, 20), beta=st.floats(0.1, 20), relabelled=st.booleans())
@settings(max_examples=40)
def test_quadrature_of_an_exponential_is_kummers_function(alpha, beta, relabelled):
    """E[e^{2a}] = Σ w ₁F₁(q; p+q; 2), by mpmath."""
    a, weights = law_of(alpha, beta, relabelled).quadrature(12)
    truth = mp.fsum(w * mp.hyp1f1(q, p + q, 2) for w, p, q in components(alpha, beta, relabelled))
    assert (weights * np.exp(2 * a)).sum() == pytest.approx(float(truth), rel=1e-12)


@every_law
@pytest.mark.parametrize("relabelled", [False, True])
def test_samples_follow_the_law(alpha, beta, relabelled):
    draws = law_of(alpha, beta, relabelled).sample(4000, torch.Generator().manual_seed(3)).numpy()

    def distribution(lam):
        return sum(
            float(w) * stats.beta(float(p), float(q)).cdf(lam)
            for w, p, q in components(alpha, beta, relabelled)
        )

    # A small α puts a share of the law closer to 1 than float64 can tell from it: these draws are
    # counted, the others compared. Of 32 p-values with fixed seeds one is below 3e-5 in 0.1 %.
    edge = 1 - 1e-12
    inside = draws[draws < edge]
    mass = float(distribution(edge))
    assert stats.binomtest(len(inside), len(draws), min(mass, 1.0)).pvalue > 3e-5
    assert stats.kstest(inside, lambda lam: distribution(lam) / mass).pvalue > 3e-5
    assert ((draws >= 0) & (draws <= 1)).all()


def test_relabelled_samples_do_not_follow_beta():
    """The confusion that the docstring warns of would be seen."""
    draws = relabelled_law(1.0).sample(4000, torch.Generator().manual_seed(0)).numpy()
    assert stats.kstest(draws, stats.beta(1, 1).cdf).pvalue < 1e-10


def test_a_seed_fixes_the_draws():
    law = relabelled_law(0.5, 3.0)
    first, second, other = (law.sample(5, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float64
    torch.manual_seed(1)
    assert torch.equal(law.sample(5), first)


@pytest.mark.parametrize("law", [beta_law, relabelled_law])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_parameters_that_are_not_positive_and_finite_are_refused(law, bad):
    with pytest.raises(InputError, match="alpha is"):
        law(bad)
    with pytest.raises(InputError, match="beta is"):
        law(1.0, bad)


@pytest.mark.parametrize("tiny", [1e-11, 1e-15, 1e-17, 5e-324])
def test_a_parameter_too_small_for_a_rule_is_to_be_raised(tiny):
    for law in (beta_law(tiny), relabelled_law(tiny), beta_law(1.0, tiny), relabelled_law(tiny, 2)):
        with pytest.raises(InputError, match=r"too small a parameter .*: raise alpha, or beta, to"):
            law.quadrature(8)


@pytest.mark.parametrize("relabelled", [False, True])
def test_the_smallest_parameter_of_a_rule_still_gives_the_mean(relabelled):
    a, w = law_of(1e-10, 1e-10, relabelled).quadrature(8)
    truth = float(mixture_moment(components(1e-10, 1e-10, relabelled), 1))
    assert a @ w == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("huge", [1e300, 1e308])
def test_a_parameter_too_large_for_a_rule_is_to_be_lowered(huge):
    for law in (beta_law(huge), relabelled_law(huge, 1.0)):
        with pytest.raises(InputError, match=r"too concentrated .*: lower alpha"):
            law.quadrature(8)


def test_a_rule_without_nodes_is_refused():
    with pytest.raises(InputError, match="at least one node"):
        beta_law(1.0).quadrature(0)


def test_a_mixture_draws_each_component_by_its_weight():
    law = BetaMixture(((0.25, 1.0, 1e6), (0.75, 1e6, 1.0)))
    low = (law.sample(4000, torch.Generator().manual_seed(0)) < 0.5).double().mean()
    assert abs(float(low) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


@every_law
@pytest.mark.parametrize("relabelled", [False, True])
def test_inverse_maps_even_numbers_to_the_law(alpha, beta, relabelled):
    """The k-th smallest of n lies where the distribution function is (k + 1/2)/n."""
    law = law_of(alpha, beta, relabelled)
    n = 2000
    lam = np.sort(law.inverse((np.arange(n) + 0.5) / n))
    assert ((lam >= 0) & (lam <= 1)).all()
    cdf = sum(weight * stats.beta(p, q).cdf(lam) for weight, p, q in law.components)
    told_apart = lam < 1 - 1e-9  # from 1, and so from each other
    # Two components cut at their shares leave at most a number each out of place.
    np.testing.assert_allclose(cdf[told_apart], ((np.arange(n) + 0.5) / n)[told_apart], atol=2 / n)


def test_inverse_of_one_component_is_its_quantile_function():
    u = np.random.default_rng(0).random((3, 40))
    np.testing.assert_allclose(
        relabelled_law(0.7).inverse(u), stats.beta(1.7, 0.7).ppf(u), rtol=1e-10
    )


def test_inverse_takes_both_ends():
    for law in (beta_law(0.5, 3.0), relabelled_law(0.5, 3.0)):
        assert law.inverse(np.array([0.0])) == 0
        assert law.inverse(np.array([1.0])) == 1
