"""R integrated piece by piece, against adaptive integration, closed forms and both sides of R."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    beta_density,
    exact_rows,
    kinks_by_bisection,
    line_points,
    mp_loss,
    relabelled_components,
)
from scipy import stats
from torch import nn

from theory.errors import InputError
from theory.kinks import exact_regularizer, segment_regularizer
from theory.losses import HEADS
from theory.network import evaluating
from theory.regularizer import mixup_risk, regularizer, standard_risk, taylor_regularizer
from theory.segments import segment_pieces

LAWS = [(0.2, 0.2), (1.0, 1.0), (2.0, 2.0), (0.5, 3.0), (2.0, 0.7)]
every_law = pytest.mark.parametrize(("alpha", "beta"), LAWS)


def small_net(seed=0, inputs=3, width=6, scale=1.5):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.LeakyReLU(0.2),
        nn.Linear(width, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    return model


def data(n, inputs=3, seed=0, head="softmax"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator).double()
    y = torch.rand(n, 3, generator=generator).double()
    return x, y / y.sum(1, keepdim=True) if head == "softmax" else y


def mp_network(model, x):
    """The small net by hand, in 30 digits."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = (
                exact_rows(layer.weight.detach()),
                exact_rows(layer.bias.detach()[None])[0],
            )
            x = [
                mp.fsum(w * z for w, z in zip(row, x, strict=True)) + b
                for row, b in zip(weight, bias, strict=True)
            ]
        else:
            slope = getattr(layer, "negative_slope", 0.0)
            x = [z if z > 0 else mp.mpf(slope) * z for z in x]
    return x


def mp_expectation(phi, breaks, alpha, beta):
    """E[φ(a) − φ(0)] over D̃_λ, by adaptive integration between the breaks."""
    start = phi(mp.mpf(0))

    def integrand(a):
        density = mp.fsum(
            share * beta_density(1 - a, p, q) for share, p, q in relabelled_components(alpha, beta)
        )
        return (phi(a) - start) * density

    return float(mp.quad(integrand, breaks))


@every_law
@pytest.mark.parametrize("head", HEADS)
def test_a_pair_equals_adaptive_integration_between_its_kinks(alpha, beta, head):
    """To 1e-10, with the network and the kinks found by other means."""
    model = small_net()
    x, y = data(2, head=head)
    with evaluating(model) as f, mp.workdps(20):
        got = segment_regularizer(f, x[:1], y[:1], x[1:], alpha=alpha, beta=beta, head=head)
        kinks = refined(model, x, kinks_by_bisection(f, x[0], x[1], cells=64))
        assert len(kinks) > 2
        (start, end), target = exact_rows(x), exact_rows(y)[0]

        def phi(a):
            point = [u + a * (v - u) for u, v in zip(start, end, strict=True)]
            return mp_loss(mp_network(model, point), target, head)

        truth = mp_expectation(phi, [0, *kinks, 1], alpha, beta)
    assert float(got.total) == pytest.approx(truth, abs=1e-10)
    assert float(got.error) < 1e-10


def refined(model, x, kinks):
    """Kinks known to 1e-6, to full precision: where the lines on both sides meet."""

    def value(a):
        with torch.no_grad():
            points = line_points(x[:1].expand(len(a), -1), x[1:].expand(len(a), -1), a)
            return model(points)

    found = []
    for kink in kinks:
        d = torch.tensor([-2e-4, -1e-4, 1e-4, 2e-4]).double()
        a = kink + d
        z = value(a)
        left, right = (z[1] - z[0]) / (a[1] - a[0]), (z[3] - z[2]) / (a[3] - a[2])
        bend = right - left
        c = int(bend.abs().argmax())
        found.append(float((z[1] - left * a[1] - z[2] + right * a[2])[c] / bend[c]))
    return found


@every_law
def test_one_unit_under_a_linear_loss_has_its_moments_in_closed_form(alpha, beta):
    """φ(a) − φ(0) = w·relu(a − k) for one huge-margin logit: the stop-loss moment of Beta."""
    k, w = 0.3, 2.0

    def f(z):
        # The other logit lies 100 below, so ℓ with y = (0, 1) is linear in f_0.
        return torch.cat([100 + w * (z - k).relu(), torch.zeros_like(z)], 1)

    x, y = torch.zeros(1, 1).double(), torch.tensor([[0.0, 1.0]]).double()
    got = segment_regularizer(f, x, y, torch.ones(1, 1).double(), alpha=alpha, beta=beta)
    truth = 0.0
    for share, p, q in relabelled_components(alpha, beta):
        above = stats.beta.sf(k, float(q), float(p))
        mean_above = float(q / (p + q)) * stats.beta.sf(k, float(q) + 1, float(p))
        truth += float(share) * w * (mean_above - k * above)
    assert float(got.total) == pytest.approx(truth, rel=1e-12)
    assert float(got.smooth) == pytest.approx(0.0, abs=1e-14)
    assert float(got.kinks) == pytest.approx(truth, rel=1e-12)


def test_parts_add_up_and_a_smooth_network_has_no_kink_part():
    x, y = data(4)
    with evaluating(small_net()) as f, evaluating(nn.Linear(3, 3).double()) as linear:
        bent = segment_regularizer(f, x, y, x.flip(0), alpha=1.0)
        straight = segment_regularizer(linear, x, y, x.flip(0), alpha=1.0)
    torch.testing.assert_close(bent.smooth + bent.kinks, bent.total)
    assert float(bent.kinks.abs().min()) > 1e-4
    torch.testing.assert_close(straight.kinks, torch.zeros(4).double(), rtol=0, atol=1e-13)


@every_law
@pytest.mark.parametrize("head", HEADS)
def test_smooth_part_is_the_regularizer_of_the_linearised_network(alpha, beta, head):
    """f replaced by f(x) + a J v, J by autograd; quadrature then converges spectrally."""
    model, (x, y) = small_net(scale=1.0), data(2, head=head)
    with evaluating(model) as f:
        got = segment_regularizer(f, x[:1], y[:1], x[1:], alpha=alpha, beta=beta, head=head)
        value, slope = torch.func.jvp(f, (x[:1],), (x[1:] - x[:1],))

    def line(a):
        return value + a.reshape(-1, 1) * slope

    start, end = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    both = regularizer(line, torch.cat([start, end]), y[:1].expand(2, -1), alpha=alpha, beta=beta,
                       head=head, nodes=64)  # fmt: skip
    # Of the two partners one is the example itself, which adds nothing.
    assert float(got.smooth) == pytest.approx(2 * float(both[0]), rel=1e-10)


@every_law
def test_all_pairs_equal_both_sides_of_theorem_1_by_fine_quadrature(alpha, beta):
    """Gauss–Jacobi with 400 nodes crosses the kinks and errs algebraically."""
    x, y = data(4)
    with evaluating(small_net()) as f:
        exact = exact_regularizer(f, x, y, alpha=alpha, beta=beta)
        relabelled = regularizer(f, x, y, alpha=alpha, beta=beta, nodes=400)
        mixed = mixup_risk(f, x, y, alpha=alpha, beta=beta, nodes=400)
        plain = standard_risk(f, x, y)
    torch.testing.assert_close(exact.total, relabelled, rtol=0, atol=1e-5)
    assert float(exact.total.mean()) == pytest.approx(float((mixed - plain).mean()), abs=1e-5)
    assert float(exact.error.max()) < 1e-10
    assert bool((exact.covered == 1).all())


def test_all_pairs_are_the_mean_of_single_pairs():
    x, y = data(4)
    with evaluating(small_net()) as f:
        exact = exact_regularizer(f, x, y, alpha=0.4)
        for i in range(4):
            single = segment_regularizer(f, x[i].expand(4, -1), y[i].expand(4, -1), x, alpha=0.4)
            torch.testing.assert_close(exact.total[i], single.total.mean(), rtol=0, atol=1e-13)
            torch.testing.assert_close(exact.smooth[i], single.smooth.mean(), rtol=0, atol=1e-11)
            assert torch.equal(exact.counts[i], single.counts)
    torch.testing.assert_close(exact.kinks, exact.total - exact.smooth)


def test_first_order_is_the_first_order_of_the_smooth_part():
    """For concentrated laws a → 0 the smooth part tends to E[a] q, kinks and curvature to less."""
    x, y = data(4)
    beta, alpha = 0.01, 40.0  # a is close to 0 or, with weight β/(α+β), to 1
    with evaluating(small_net(scale=0.3)) as f:
        exact = exact_regularizer(f, x, y, alpha=alpha, beta=beta)
        first = taylor_regularizer(f, x, y, order=1, alpha=alpha, beta=beta)[0]
        second = taylor_regularizer(f, x, y, order=2, alpha=alpha, beta=beta)[1]
    assert float((exact.smooth - second).abs().max()) < 0.1 * float(
        (exact.smooth - first).abs().max()
    )


def test_many_large_jumps_of_the_loss_are_resolved():
    """Logits that change by hundreds on one piece."""

    def f(z):
        return torch.cat([300 * z, 150 - 50 * z, 400 * (z - 0.7).relu()], 1)

    x, y = torch.zeros(1, 1).double(), torch.tensor([[0.2, 0.3, 0.5]]).double()
    got = segment_regularizer(f, x, y, torch.ones(1, 1).double(), alpha=0.5)
    with mp.workdps(20):

        def phi(a):
            return mp_loss(
                [300 * a, 150 - 50 * a, 400 * max(a - 0.7, 0)], exact_rows(y)[0], "softmax"
            )

        breaks = [0, 1e-3, 0.1, 0.3, 0.4, mp.mpf(150) / 350, 0.45, 0.5, 0.6, mp.mpf(0.7), 0.8, 1]
        truth = mp_expectation(phi, breaks, 0.5, 0.5)
    assert float(got.total) == pytest.approx(truth, rel=1e-11)


@pytest.mark.parametrize("alpha", [1e-3, 30.0, 1e4])
def test_extreme_laws_are_integrated_too(alpha):
    """An affine network and the sigmoid head of a saturated logit: R = −y E[a]·slope in effect."""

    def f(z):
        return 60 + z  # ℓ = h − y f, and h = f up to 1e-26

    x, y = torch.zeros(1, 1).double(), torch.tensor([[0.25]]).double()
    got = segment_regularizer(f, x, y, torch.ones(1, 1).double(), alpha=alpha, head="sigmoid")
    assert float(got.total) == pytest.approx(0.75 * alpha / (2 * alpha + 1), rel=1e-11)
    assert float(got.error) < 1e-10


@every_law
def test_a_budget_is_exact_where_it_covers(alpha, beta):
    """Covered mass by scipy's distribution; the estimate of the error is of the error's size."""
    x, y = data(6)
    with evaluating(small_net(width=20)) as f:
        law = {"alpha": alpha, "beta": beta}
        full = segment_regularizer(f, x, y, x.flip(0), **law)
        part = segment_regularizer(f, x, y, x.flip(0), **law, max_pieces=4)
        ends = segment_pieces(f, x, x.flip(0), max_pieces=4).covered
    assert bool((part.counts <= full.counts).all())
    assert int(part.counts.max()) == 4 < int(full.counts.max())
    truth = sum(
        float(share) * stats.beta.cdf(ends.numpy(), float(q), float(p))
        for share, p, q in relabelled_components(alpha, beta)
    )
    np.testing.assert_allclose(part.covered, truth, rtol=1e-12)
    assert bool((full.covered == 1).all())
    torch.testing.assert_close(part.smooth, full.smooth, rtol=0, atol=1e-12)
    missed = (part.total - full.total).abs()
    assert 1e-9 < float(missed.max()) < 5 * float(part.error.max())
    complete = ends == 1
    assert float(missed[complete].max() if complete.any() else 0.0) < 1e-12


def test_budgets_of_all_pairs_count_each_way_on_its_own():
    x, y = data(4)
    done = []
    with evaluating(small_net(width=20)) as f:
        exact = exact_regularizer(f, x, y, alpha=1.0)
        part = exact_regularizer(f, x, y, alpha=1.0, max_pieces=5, on_progress=done.append)
        rich = exact_regularizer(f, x, y, alpha=1.0, max_pieces=500)
    assert torch.equal(part.counts, exact.counts.clamp(max=5))
    assert float(part.covered.min()) < 1
    assert bool((part.covered.diagonal() == 1).all())
    assert sum(done) == 12
    torch.testing.assert_close(rich.total, exact.total, rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(
    st.floats(0.05, 8), st.floats(0.05, 8), st.lists(st.floats(0.001, 0.999), max_size=4),
    st.integers(0, 999),
)  # fmt: skip
def test_random_polygons_and_laws_keep_their_mean(alpha, beta, levels, seed):
    """A loss linear in the logits: R is a combination of stop-loss moments, whatever the law."""
    weights = torch.randn(len(levels) + 1, generator=torch.Generator().manual_seed(seed)).double()

    def f(z):
        units = [z, *((z - level).relu() for level in levels)]
        return 200 + sum(w * unit for w, unit in zip(weights, units, strict=True))

    x, y = torch.zeros(1, 1).double(), torch.zeros(1, 1).double()
    got = segment_regularizer(f, x, y, torch.ones(1, 1).double(), alpha=alpha, beta=beta,
                              head="sigmoid")  # fmt: skip
    truth = 0.0
    for share, p, q in relabelled_components(alpha, beta):
        a, b = float(q), float(p)
        for w, k in zip(weights.tolist(), [0.0, *levels], strict=True):
            above = a / (a + b) * stats.beta.sf(k, a + 1, b) - k * stats.beta.sf(k, a, b)
            truth += float(share) * w * above
    assert float(got.total) == pytest.approx(truth, rel=1e-9, abs=1e-11)


def test_bad_input_is_refused():
    x, y = data(3)
    with evaluating(small_net()) as f:
        for law, message in (
            ({"alpha": 0.0}, "alpha is 0.0"),
            ({"alpha": 1.0, "beta": math.inf}, "beta is inf"),
            ({"alpha": 1e12}, "too concentrated"),
        ):
            with pytest.raises(InputError, match=message):
                exact_regularizer(f, x, y, **law)
        with pytest.raises(InputError, match="no examples"):
            exact_regularizer(f, x[:0], y[:0], alpha=1.0)
        alone = exact_regularizer(f, x[:1], y[:1], alpha=1.0)
    assert alone.total.tolist() == [0.0]
