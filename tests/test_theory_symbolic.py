"""Identities in symbols are proved, wrong variants are not, and the numeric code agrees."""

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import stats
from torch import nn

from deep.mixupe import MixupE
from theory import symbolic
from theory.attribution import LayerShares
from theory.errors import InputError
from theory.first_order import first_order
from theory.identity import Identity
from theory.losses import HEADS, loss, loss_hessian, probabilities
from theory.mixing import relabelled_law
from theory.network import evaluating
from theory.regularizer import mixup_risk, regularizer, standard_risk, taylor_regularizer
from theory.taylor import loss_taylor_terms, taylor_terms

every_head = pytest.mark.parametrize("head", HEADS)
PROVED = list(symbolic.identities())


def is_zero(residual) -> bool:
    return bool(sp.Matrix([residual]).is_zero_matrix)


def somewhere(identity: Identity) -> dict:
    """A value for every name of an identity, without a pattern."""
    rng = np.random.default_rng(0)
    t = sp.Symbol("t")
    names = sorted({str(s) for s in (identity.left - identity.right).free_symbols})
    values = {name: rng.uniform(0.3, 1.7) for name in names} | {"lambda": 0.37, "k": 3}
    for name in ("p", "h", "f_1", "f_2", "L", "R"):
        values.setdefault(name, sp.Lambda(t, sp.sin(rng.normal() + t * rng.normal())))
    return values


@pytest.mark.parametrize("identity", PROVED, ids=lambda identity: identity.name)
def test_identity_is_proved_by_algebra(identity):
    """Its sides are different expressions, and their difference simplifies to zero."""
    assert not is_zero(sp.Matrix([identity.left - identity.right]))
    assert identity.holds()
    assert is_zero(identity.residual())


@pytest.mark.parametrize("identity", PROVED, ids=lambda identity: identity.name)
def test_identity_holds_in_numbers(identity):
    """At a point without a pattern, so that the simplification is not the only witness."""
    left, right = identity.at(somewhere(identity))
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-13)


def test_latex_shows_both_sides():
    left, right = symbolic.mean_share().latex().split(" = ")
    assert r"\operatorname{B}" in left
    assert r"2 \alpha \beta" in right


def test_every_function_that_makes_an_identity_is_among_them():
    makers = {
        name
        for name, maker in inspect.getmembers(symbolic, inspect.isfunction)
        if inspect.signature(maker).return_annotation is Identity
    }
    used = inspect.getsource(symbolic.identities)
    assert {name for name in makers if f"{name}(" in used} == makers
    assert len({identity.name for identity in PROVED}) == len(PROVED)


# Wrong variants: what one could believe in place of the right side.

alpha, beta, lam = sp.symbols("alpha beta lambda", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
theta, eta = sp.Symbol("theta", real=True), sp.Symbol("eta", positive=True)
density = lam ** (alpha - 1) * (1 - lam) ** (beta - 1) / sp.beta(alpha, beta)


def real(name: str) -> sp.Symbol:
    return sp.Symbol(name, real=True)


def applied(name: str) -> sp.Expr:
    return sp.Function(name, real=True)(theta)


def keeping_the_law() -> sp.Expr:
    """The relabelled integrand with p itself in place of D̃."""
    p = sp.Function("p", real=True)
    terms = []
    for term in symbolic.relabelled_pairs().right.args:
        share = lam if lam in term.args else 1 - lam
        terms.append(term.xreplace({p(lam) + p(1 - lam): p(share) / share}))
    return sp.Add(*terms)


def swapped_labels() -> sp.Expr:
    pairs = [(real(f"y_1_{c}"), real(f"y_2_{c}")) for c in (1, 2)]
    swap = {u: v for pair in pairs for u, v in (pair, pair[::-1])}
    return symbolic.relabelled_pairs().right.xreplace(swap)


def without_curvature(head) -> sp.Expr:
    a = real("a")
    second = {sp.Function(f"f_{c}", real=True)(a).diff(a, 2): 0 for c in (1, 2)}
    return symbolic.second_order_term(head).right.xreplace(second)


def covariance_alone() -> sp.Expr:
    """S = Cov(x'): as if every example lay at the mean."""
    centre = {real(f"x_{i}"): sum(real(f"x^{{({j})}}_{i}") for j in (1, 2, 3)) / 3 for i in (1, 2)}
    return symbolic.gauss_newton().right.subs(centre)


WRONG = {
    "D̃ is Beta(α, β)": (symbolic.relabelled_density(), density),
    "D̃ is Beta(α+1, β)": (
        symbolic.relabelled_density(),
        density.subs(alpha, alpha + 1),
    ),
    "kept labels under p": (symbolic.relabelled_pairs(), keeping_the_law()),
    "the other label is kept": (symbolic.relabelled_pairs(), swapped_labels()),
    "moments of Beta(α, β)": (symbolic.moments(), sp.rf(beta, k) / sp.rf(alpha + beta, k)),
    "moments with α and β swapped": (
        symbolic.moments(),
        (alpha * sp.rf(alpha, k) + beta * sp.rf(beta, k))
        / ((alpha + beta) * sp.rf(alpha + beta + 1, k)),
    ),
    "moments of Beta(α, α)": (symbolic.symmetric_moments(), sp.rf(alpha, k) / sp.rf(2 * alpha, k)),
    "E[a] of Beta(α, β)": (symbolic.mean_share(), beta / (alpha + beta)),
    "bias dropped": (symbolic.euler(bias=True), sp.Integer(0)),
    "bias dropped, sign": (symbolic.euler("sign", bias=True), sp.Integer(0)),
    "bias dropped, pattern": (symbolic.euler("pattern", bias=True), sp.Integer(0)),
    "only the last layer's bias": (
        symbolic.euler(bias=True),
        real("u_1") * real("c_1") + real("u_2") * real("c_2"),
    ),
    "S is the covariance": (symbolic.gauss_newton(), covariance_alone()),
    "η̂ changes the value": (symbolic.eta_hat("value"), applied("L") + eta * applied("R")),
    "η̂ leaves the gradient": (
        symbolic.eta_hat("gradient"),
        applied("L").diff(theta) + eta * applied("R").diff(theta),
    ),
    "η̂ differentiated and held": (
        symbolic.eta_hat("undetached"),
        symbolic.eta_hat("gradient").right,
    ),
}
for head in HEADS:
    other = HEADS[1 - HEADS.index(head)]
    WRONG |= {
        f"the coin is 1 − λ ({head})": (
            symbolic.exponential_family(head),
            symbolic.exponential_family(head).right.subs(lam, 1 - lam),
        ),
        f"the other head's H ({head})": (symbolic.hessian(head), symbolic.hessian(other).right),
        f"sign of φ' ({head})": (
            symbolic.first_order_term(head),
            -symbolic.first_order_term(head).right,
        ),
        f"the other head's φ' ({head})": (
            symbolic.first_order_term(head),
            symbolic.first_order_term(other).right,
        ),
        f"Gauss–Newton is all ({head})": (
            symbolic.second_order_term(head),
            without_curvature(head),
        ),
        f"no normalisation gap ({head})": (
            symbolic.q_gap(head),
            symbolic.q_gap(head).right.subs({real("m_1"): 0, real("m_2"): 0}),
        ),
        f"no homogeneity gap ({head})": (
            symbolic.q_gap(head),
            symbolic.q_gap(head).right.subs({real("x_1"): 0, real("x_2"): 0}),
        ),
        f"sign of the gaps ({head})": (symbolic.q_gap(head), -symbolic.q_gap(head).right),
    }


@pytest.mark.parametrize("name", WRONG)
def test_wrong_variant_is_not_proved(name):
    """Neither by algebra nor in numbers: its sides differ at a random point."""
    identity, wrong = WRONG[name]
    identity = dataclasses.replace(identity, right=wrong)
    assert not identity.holds()
    left, right = identity.at(somewhere(identity))
    assert np.abs(left - right).max() > 1e-3


def test_every_identity_has_a_wrong_variant():
    """But the two expansions, which differ one order higher, and Euler's without biases."""
    judged = {identity.name for identity, _ in WRONG.values()}
    rest = {identity.name for identity in PROVED} - judged
    assert all("nested" in name or "without biases" in name for name in rest)


@every_head
@pytest.mark.parametrize("order", [1, 2])
def test_the_expansions_differ_one_order_beyond(head, order):
    composite, nested = (
        symbolic.expansion_terms(kind, order, order + 1, head) for kind in ("composite", "nested")
    )
    terms = Identity("", "", composite, nested)
    residual = terms.residual()
    assert is_zero(residual[:-1])
    assert not is_zero(residual[-1])
    assert not terms.holds()
    left, right = terms.at(somewhere(terms))
    assert abs(left - right)[-1] > 1e-3


def test_euler_fails_with_a_bias():
    """The residual against zero is the bias term, on every activation pattern."""
    whole = symbolic.euler("pattern", bias=True)
    broken = dataclasses.replace(whole, right=sp.Integer(0))
    for pattern in itertools.product((0, 1), repeat=2):
        s = dict(zip((real("s_1"), real("s_2")), pattern, strict=True))
        left = broken.residual().subs(s)
        expected = sum(
            real(f"u_{r}") * (real(f"c_{r}") + sum(
                real(f"W_{{{r}{j}}}") * real(f"b_{j}") for j in (1, 2) if pattern[j - 1]
            ))
            for r in (1, 2)
        )  # fmt: skip
        assert sp.expand(left - expected) == 0
        assert expected != 0


# Agreement with the numeric code.


def numbers(**arrays) -> dict:
    """Values by the names of symbols: vectors as x_1, x_2 and so on, matrices as J_{11}."""
    values = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        for index, value in np.ndenumerate(array):
            place = "".join(str(i + 1) for i in index)
            values[f"{name}_{{{place}}}" if array.ndim == 2 else f"{name}_{place}"] = float(value)
    return values


def make_net(activation: type[nn.Module], inputs: int = 2) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(inputs, 2), activation(), nn.Linear(2, 2)).double()


def make_data(head: str, n: int = 3, inputs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64) + 0.4
    y = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return x, y / y.sum(1, keepdim=True) if head == "softmax" else y


def written_out(net: nn.Sequential, point: sp.Matrix) -> list:
    """The logits of a tanh net as an expression of its input."""
    w1, b1, w2, b2 = (sp.Matrix(p.detach().numpy()) for p in net.parameters())
    return list(w2 * (w1 * point + b1).applyfunc(sp.tanh) + b2)


def parts(net, x, y, head) -> dict:
    """Logits, probabilities, residual and Jacobian of one example, by autograd."""
    with torch.no_grad():
        f = net(x[None])
    g = probabilities(f, head)[0]
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z[None])[0], x)
    return {"f": f[0], "g": g, "u": g - y, "J": jacobian}


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.4), (2.5, 0.7), (1.0, 3.0)])
def test_relabelled_law_is_the_density_and_has_the_moments(a, b):
    law = relabelled_law(a, b)
    for point in (0.1, 0.5, 0.93):
        truth = sum(w * stats.beta(p, q).pdf(point) for w, p, q in law.components)
        for side in symbolic.relabelled_density().at({"alpha": a, "beta": b, "lambda": point}):
            assert side == pytest.approx(truth, rel=1e-12)
    made = [symbolic.moments()] + [symbolic.symmetric_moments()] * (a == b)
    for identity, order in itertools.product(made, range(8)):
        for side in identity.at({"alpha": a, "beta": b, "k": order}):
            assert side == pytest.approx(law.moment(order), rel=1e-12)
    for side in symbolic.mean_share().at({"alpha": a, "beta": b}):
        assert side == pytest.approx(law.moment(1), rel=1e-12)


@every_head
def test_both_sides_of_the_pair_expectation_are_those_of_theorem_1(head):
    """Integrated over λ by Legendre nodes, for λ ~ Beta(2, 3) and a network of one input."""
    net, (x, y) = make_net(nn.Tanh, 1), make_data(head, 2, 1)
    t = sp.Symbol("t")
    f = written_out(net, sp.Matrix([t]))
    exponentials = [sp.exp(z) for z in f]
    h = sp.log(sum(exponentials)) if head == "softmax" else sum(sp.log(1 + e) for e in exponentials)
    values = numbers(x=x[:, 0], y_1=y[0], y_2=y[1]) | {
        "h": sp.Lambda(t, h),
        "f_1": sp.Lambda(t, f[0]),
        "f_2": sp.Lambda(t, f[1]),
        "p": sp.Lambda(t, 12 * t * (1 - t) ** 2),
    }
    nodes, weights = np.polynomial.legendre.leggauss(20)
    # Both orders of λ count, on an interval of length one in place of two.
    mixed, kept = sum(
        w / 4 * np.array(symbolic.relabelled_pairs().at(values | {"lambda": (1 + node) / 2}))
        for node, w in zip(nodes, weights, strict=True)
    )
    settings = {"alpha": 2.0, "beta": 3.0, "head": head, "nodes": 24}
    clean = standard_risk(net, x, y, head)
    assert clean.sum() + mixed == pytest.approx(
        2 * float(mixup_risk(net, x, y, **settings).sum()), rel=1e-12
    )
    assert clean.sum() + kept == pytest.approx(
        2 * float((clean + regularizer(net, x, y, **settings)).sum()), rel=1e-12
    )


@every_head
def test_loss_of_a_mixed_label_and_its_curvature(head):
    f = torch.tensor([[0.7, -1.3, 0.2]], dtype=torch.float64)
    _, y = make_data(head, 2)
    values = numbers(f=f[0], y_1=y[0], y_2=y[1]) | {"lambda": 0.3}
    truth = float(loss(f[:, :2], (0.3 * y[0] + 0.7 * y[1])[None], head))
    for side in symbolic.exponential_family(head).at(values):
        assert side == pytest.approx(truth, rel=1e-13)
    for side in symbolic.hessian(head).at(values):
        np.testing.assert_allclose(side, loss_hessian(f, head)[0], rtol=1e-12)


@pytest.mark.parametrize("engine", ["series", "nested"])
@every_head
def test_terms_of_the_expansion_are_those_of_taylor(head, engine):
    """First and second derivative, and both expansions' coefficients to order three."""
    net, (x, y) = make_net(nn.Tanh), make_data(head, 1)
    v = torch.tensor([[0.8, -0.5]], dtype=torch.float64)
    truth = loss_taylor_terms(net, x, y, v, 4, head, engine)[:, 0]
    a = sp.Symbol("t")
    f = written_out(net, sp.Matrix(x[0].numpy()) + a * sp.Matrix(v[0].numpy()))
    values = numbers(y=y[0], F=taylor_terms(net, x, v, 4, engine)[:, 0].T)
    curve = {"a": 0.0, "f_1": sp.Lambda(a, f[0]), "f_2": sp.Lambda(a, f[1])}
    for side in symbolic.first_order_term(head).at(values | curve):
        assert side == pytest.approx(float(truth[1]), rel=1e-11)
    for side in symbolic.second_order_term(head).at(values | curve):
        assert side == pytest.approx(2 * float(truth[2]), rel=1e-11)
    for side in symbolic.nested_expansion(3, head).at(values):
        np.testing.assert_allclose(side.ravel(), truth[:4], rtol=1e-11)


@every_head
def test_q_and_its_two_gaps_are_those_of_first_order(head):
    net, (x, y) = make_net(nn.Tanh), make_data(head)
    with evaluating(net) as f:
        terms = first_order(f, x, y, x.mean(0), head)
    for i in range(len(x)):
        of = parts(net, x[i], y[i], head)
        values = numbers(f=of["f"], J=of["J"], y=y[i], x=x[i], m=x.mean(0))
        left, right = symbolic.q_gap(head).at(values)
        assert left == pytest.approx(float(terms.q[i] - terms.q_hat[i]), rel=1e-12)
        both = terms.normalization_gap[i] + terms.homogeneity_gap[i]
        assert right == pytest.approx(float(both), rel=1e-12)
        _, at_zero_mean = symbolic.q_gap(head).at(values | {"m_1": 0.0, "m_2": 0.0})
        assert right - at_zero_mean == pytest.approx(float(terms.normalization_gap[i]), rel=1e-11)


@pytest.mark.parametrize("relu", ["max", "sign", "pattern"])
def test_bias_term_is_the_homogeneity_gap_and_its_layers(relu):
    net, (x, y) = make_net(nn.ReLU), make_data("softmax")
    with evaluating(net) as f, LayerShares(net) as shares:
        gap = first_order(f, x, y, x.mean(0)).homogeneity_gap
    V, b, W, c = (p.detach() for p in net.parameters())
    patterns = (x @ V.T + b > 0).double()
    assert 0 < patterns.mean() < 1
    for i in range(len(x)):
        u = parts(net, x[i], y[i], "softmax")["u"]
        values = numbers(x=x[i], u=u, W=W, V=V, b=b, c=c, s=patterns[i])
        for side in symbolic.euler(relu, bias=True).at(values):
            assert side == pytest.approx(float(gap[i]), rel=1e-12)
        for layer, others in (("0", {"c_1": 0.0, "c_2": 0.0}), ("2", {"b_1": 0.0, "b_2": 0.0})):
            _, share = symbolic.euler("pattern", bias=True).at(values | others)
            assert share == pytest.approx(float(shares.by_layer[layer][i]), rel=1e-12, abs=1e-15)


def test_gauss_newton_part_is_the_second_order_of_a_relu_network():
    """Whose logits have no second derivative: R_2 − R_1 = ½ E[a²] tr(H J S Jᵀ)."""
    net, (x, y) = make_net(nn.ReLU), make_data("softmax")
    r1, r2 = taylor_regularizer(net, x, y, order=2, alpha=0.8)
    points = {f"x^{{({j + 1})}}": x[j] for j in range(3)}
    for i in range(len(x)):
        of = parts(net, x[i], y[i], "softmax")
        values = numbers(J=of["J"], g=of["g"], x=x[i], **points)
        for side in symbolic.gauss_newton(3).at(values):
            second = relabelled_law(0.8).moment(2) / 2 * side
            assert second == pytest.approx(float(r2[i] - r1[i]), rel=1e-12)


def test_eta_hat_acts_as_in_the_training_objective():
    """Value and gradient of MixupE's total in one weight, L and R by their tangents there."""
    net, (x, y) = make_net(nn.Tanh), make_data("softmax")
    weight = net[0].weight

    def total(strength: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return MixupE(net, alpha=1.0, eta=strength, generator=generator)(x, y)

    mixup = total(0.0)  # η̂ is 1
    u = net(x).softmax(1) - y
    penalty = relabelled_law(1.0).moment(1) * (u * net(x)).sum(1).abs().mean()
    slopes = [float(torch.autograd.grad(part, weight)[0][0, 0]) for part in (mixup, penalty)]
    at, t = weight[0, 0].item(), sp.Symbol("t")
    values = {"theta": at, "eta": 5.0}
    for name, part, slope in zip("LR", (mixup, penalty), slopes, strict=True):
        values[name] = sp.Lambda(t, part.item() + slope * (t - at))
    combined = total(5.0)
    gradient = float(torch.autograd.grad(combined, weight)[0][0, 0])
    for side in symbolic.eta_hat("value").at(values):
        assert side == pytest.approx(combined.item(), rel=1e-12)
    for side in symbolic.eta_hat("gradient").at(values):
        assert side == pytest.approx(gradient, rel=1e-11)
    for side in symbolic.eta_hat("undetached").at(values):
        assert side == pytest.approx(slopes[0], rel=1e-11)
        assert side != pytest.approx(gradient, rel=1e-3)


HEADED = [
    symbolic.exponential_family,
    symbolic.hessian,
    symbolic.first_order_term,
    symbolic.second_order_term,
    symbolic.q_gap,
]


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [(maker, ("tanh",), "unknown head 'tanh': use one of softmax, sigmoid") for maker in HEADED]
    + [
        (symbolic.nested_expansion, (0,), "order of the expansion is 0"),
        (symbolic.euler, ("gelu",), "unknown form of ReLU 'gelu'"),
        (symbolic.gauss_newton, (0,), "0 partners have no mean"),
        (symbolic.eta_hat, ("loss",), "unknown part 'loss'"),
    ],
)
def test_bad_arguments_are_refused(call, arguments, message):
    # The annotations forbid some under test; the plain functions, as users call them, explain.
    with pytest.raises(InputError, match=message):
        inspect.unwrap(call)(*arguments)


def test_a_name_without_a_value_is_refused():
    with pytest.raises(InputError, match="no value is given for beta: add"):
        symbolic.mean_share().at({"alpha": 1.0})
    with pytest.raises(InputError, match="f_1, f_2, h, lambda, p, x_1"):
        symbolic.relabelled_pairs().at({})
