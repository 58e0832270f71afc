"""The steps of Theorem 1 and of MixupE as symbolic identities, each proved by algebra.

Every function returns an `Identity` whose two sides are built by different routes (one by
differentiation or by Beta integrals, the other the formula as the theory states it), so that its
residual has to be simplified to zero. Sizes are small and fixed (two classes, two inputs), entries
are free symbols or free functions. What is proved is the algebra; that expectations and derivatives
may be exchanged is not.

Sources: Zou, Verma et al., "MixupE", UAI 2023 (Theorem 1, equation (1), η̂); Zhang et al., "How does
mixup help with robustness and generalization?", ICLR 2021, Lemma 3.1 (the relabelled law).
"""

import math
from collections.abc import Iterator
from typing import Literal

import sympy as sp

from theory.errors import InputError
from theory.identity import Identity
from theory.losses import HEADS, Head

Relu = Literal["max", "sign", "pattern"]


def _vector(name: str, size: int = 2) -> sp.Matrix:
    return sp.Matrix(sp.symbols(f"{name}_1:{size + 1}", real=True))


def _matrix(name: str, rows: int = 2, columns: int = 2) -> sp.Matrix:
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}_{{{i + 1}{j + 1}}}", real=True))


def _curve(name: str, a: sp.Expr, size: int = 2) -> sp.Matrix:
    return sp.Matrix([sp.Function(f"{name}_{c + 1}", real=True)(a) for c in range(size)])


def _partition(f: sp.Matrix, head: str) -> sp.Expr:
    """h(f) as it is defined."""
    if head not in HEADS:
        raise InputError(f"unknown head {head!r}: use one of {', '.join(HEADS)}")
    if head == "softmax":
        return sp.log(sum(sp.exp(z) for z in f))
    return sum(sp.log(1 + sp.exp(z)) for z in f)


def _probabilities(f: sp.Matrix, head: str) -> sp.Matrix:
    """g by its formula, not as a derivative of h."""
    total = sum(sp.exp(z) for z in f)
    return f.applyfunc(lambda z: sp.exp(z) / (total if head == "softmax" else 1 + sp.exp(z)))


def _curvature(g: sp.Matrix, head: str) -> sp.Matrix:
    """H by its formula in g."""
    return sp.diag(*g) - (g * g.T if head == "softmax" else sp.diag(*(p * p for p in g)))


def _beta_density(lam: sp.Expr, p: sp.Expr, q: sp.Expr) -> sp.Expr:
    return lam ** (p - 1) * (1 - lam) ** (q - 1) / sp.beta(p, q)


_ALPHA, _BETA, _LAM = sp.symbols("alpha beta lambda", positive=True)
_A = sp.Symbol("a", real=True)


def relabelled_density() -> Identity:
    """The density of D̃_λ: a mixed label keeps its first example's with probability λ.

    λ [p(λ) + p(1 − λ)] with p the density of Beta(α, β) is the mixture
    α/(α+β) Beta(α+1, β) + β/(α+β) Beta(β+1, α) of Theorem 1; it is not Beta(α, β).
    """
    lam, alpha, beta = _LAM, _ALPHA, _BETA
    return Identity(
        "relabelled density",
        r"\lambda\,[p_{\alpha\beta}(\lambda)+p_{\alpha\beta}(1-\lambda)]"
        r"=\tfrac{\alpha}{\alpha+\beta}\,p_{\alpha+1,\beta}(\lambda)"
        r"+\tfrac{\beta}{\alpha+\beta}\,p_{\beta+1,\alpha}(\lambda)",
        lam * (_beta_density(lam, alpha, beta) + _beta_density(1 - lam, alpha, beta)),
        alpha / (alpha + beta) * _beta_density(lam, alpha + 1, beta)
        + beta / (alpha + beta) * _beta_density(lam, beta + 1, alpha),
    )


def relabelled_pairs() -> Identity:
    """L_mix's expectation over a pair is the relabelled one, for any loss that is affine in y.

    The loss is ℓ(x, y) = h(x) − yᵀf(x) with free functions h and f of a point on the line through
    x_1 and x_2; λ has any density p. Both sides are the integrands of the pairs (1, 2) and (2, 1)
    together, at λ and at 1 − λ, which leaves their integrals over [0, 1] twice what they were.
    """
    p = sp.Function("p", real=True)
    h = sp.Function("h", real=True)
    x, ys = _vector("x"), (_vector("y_1"), _vector("y_2"))

    def loss(point: sp.Expr, y: sp.Matrix) -> sp.Expr:
        return h(point) - y.dot(_curve("f", point))

    def mixed(lam: sp.Expr) -> sp.Expr:
        other = 1 - lam
        return p(lam) * sum(
            loss(lam * x[i] + other * x[j], lam * ys[i] + other * ys[j])
            for i, j in ((0, 1), (1, 0))
        )

    def kept(lam: sp.Expr) -> sp.Expr:
        law = lam * (p(lam) + p(1 - lam))
        return law * sum(loss(lam * x[i] + (1 - lam) * x[j], ys[i]) for i, j in ((0, 1), (1, 0)))

    return Identity(
        "relabelled pairs",
        r"\sum_{ij}E_{\lambda\sim p}\,\ell(\lambda x_i+(1-\lambda)x_j,\lambda y_i+(1-\lambda)y_j)"
        r"=\sum_{ij}E_{\lambda\sim\tilde D}\,\ell(x_i+(1-\lambda)(x_j-x_i),y_i)",
        mixed(_LAM) + mixed(1 - _LAM),
        kept(_LAM) + kept(1 - _LAM),
    )


def moments() -> Identity:
    """E[a^k] under D̃_λ for free α, β and k, with a = 1 − λ.

    Left by Beta integrals of λ a^k + a λ^k under Beta(α, β), right by the mixture, whose moments
    are ratios of rising factorials x^(k) = x (x+1) … (x+k−1).
    """
    alpha, beta = _ALPHA, _BETA
    k = sp.Symbol("k", integer=True, nonnegative=True)
    order = alpha + beta + 1
    return Identity(
        "moments",
        r"E_{\tilde D}[a^k]="
        r"\tfrac{\alpha}{\alpha+\beta}\prod_{r<k}\tfrac{\beta+r}{\alpha+\beta+1+r}"
        r"+\tfrac{\beta}{\alpha+\beta}\prod_{r<k}\tfrac{\alpha+r}{\alpha+\beta+1+r}",
        (sp.beta(alpha + 1, beta + k) + sp.beta(alpha + k, beta + 1)) / sp.beta(alpha, beta),
        (alpha * sp.rf(beta, k) + beta * sp.rf(alpha, k)) / ((alpha + beta) * sp.rf(order, k)),
    )


def symmetric_moments() -> Identity:
    """E[a^k] = Π_{r<k} (α + r)/(2α + 1 + r) under D̃_λ for α = β and free k."""
    k = sp.Symbol("k", integer=True, nonnegative=True)
    return Identity(
        "moments for α = β",
        r"E_{\tilde D}[a^k]=\prod_{r<k}\frac{\alpha+r}{2\alpha+1+r}",
        moments().left.subs(_BETA, _ALPHA),
        sp.rf(_ALPHA, k) / sp.rf(2 * _ALPHA + 1, k),
    )


def mean_share() -> Identity:
    """E[a] under D̃_λ is 2αβ/((α+β)(α+β+1)): α/(2α+1) for α = β, where Beta's is ½."""
    alpha, beta = _ALPHA, _BETA
    return Identity(
        "mean share of the second example",
        r"E_{\tilde D}[a]=2\,E_{\mathrm{Beta}(\alpha,\beta)}[\lambda(1-\lambda)]"
        r"=\frac{2\alpha\beta}{(\alpha+\beta)(\alpha+\beta+1)}",
        2 * sp.beta(alpha + 1, beta + 1) / sp.beta(alpha, beta),
        2 * alpha * beta / ((alpha + beta) * (alpha + beta + 1)),
    )


def exponential_family(head: Head = "softmax") -> Identity:
    """Cross-entropy is h(f) − yᵀf; a mixed label is then a coin between the two labels.

    Left the (binary) cross-entropy −Σ y log g … of λy_1 + (1−λ)y_2 from probabilities, right
    λ ℓ(f, y_1) + (1−λ) ℓ(f, y_2) with ℓ = h(f) − yᵀf.

    Raises:
        InputError: If the head is unknown.
    """
    f, ys = _vector("f"), [_vector("y_1"), _vector("y_2")]
    h, g = _partition(f, head), _probabilities(f, head)
    if head == "softmax":  # labels sum to one
        ys = [sp.Matrix([y[0], 1 - y[0]]) for y in ys]
    y = _LAM * ys[0] + (1 - _LAM) * ys[1]
    left = -sum(t * sp.log(p) for t, p in zip(y, g, strict=True))
    if head == "sigmoid":
        left -= sum((1 - t) * sp.log(1 - p) for t, p in zip(y, g, strict=True))
    return Identity(
        f"a mixed label is a coin ({head})",
        r"\ell(f,\lambda y_1+(1-\lambda)y_2)=\lambda\,\ell(f,y_1)+(1-\lambda)\,\ell(f,y_2),"
        r"\quad\ell=h(f)-y^\top f",
        left,
        _LAM * (h - ys[0].dot(f)) + (1 - _LAM) * (h - ys[1].dot(f)),
    )


def hessian(head: Head = "softmax") -> Identity:
    """H = ∇²h: diag(g) − g gᵀ (softmax, three classes here) or diag(g(1 − g)) (sigmoid).

    Raises:
        InputError: If the head is unknown.
    """
    f = _vector("f", 3)
    formula = {"softmax": r"\mathrm{diag}(g)-gg^\top", "sigmoid": r"\mathrm{diag}(g(1-g))"}
    h = _partition(f, head)
    return Identity(
        f"curvature of the loss ({head})",
        rf"H=\nabla^2h={formula[head]}",
        sp.Matrix(3, 3, lambda i, j: sp.Derivative(h, f[i], f[j])),
        _curvature(_probabilities(f, head), head),
    )


def first_order_term(head: Head = "softmax") -> Identity:
    """φ'(a) = (g − y)ᵀ f'(a) for a free smooth curve f of logits, φ = h(f) − yᵀf.

    On the line x + a v, f' = J v; towards v = x̄' − x and at a = 0 it is q.

    Raises:
        InputError: If the head is unknown.
    """
    f, y = _curve("f", _A), _vector("y")
    return Identity(
        f"first-order term ({head})",
        r"\phi'=(g-y)^\top f'",
        sp.Derivative(_partition(f, head) - y.dot(f), _A),
        (_probabilities(f, head) - y).dot(f.diff(_A)),
    )


def second_order_term(head: Head = "softmax") -> Identity:
    """φ''(a) = f'ᵀ H f' + (g − y)ᵀ f'': the Gauss–Newton part, and what the net's curvature adds.

    Raises:
        InputError: If the head is unknown.
    """
    f, y = _curve("f", _A), _vector("y")
    g, slope = _probabilities(f, head), f.diff(_A)
    return Identity(
        f"second-order term ({head})",
        r"\phi''=f'^\top H f'+(g-y)^\top f''",
        sp.Derivative(_partition(f, head) - y.dot(f), (_A, 2)),
        (slope.T * _curvature(g, head) * slope)[0] + (g - y).dot(f.diff(_A, 2)),
    )


def nested_expansion(order: int, head: Head = "softmax") -> Identity:
    """Both readings of Theorem 1's expansion have the same coefficients up to a^K.

    The logits are F_0 + F_1 a + … with free coefficients, up to a^{K+1}. Left the Taylor
    coefficients of φ itself; right those of the nested form: the logits' change is cut off at order
    K, and h expanded to order K around F_0.

    Args:
        order: K ≥ 1; cost grows fast, 3 takes seconds.
        head: Which h.

    Raises:
        InputError: If K < 1 or the head is unknown.
    """
    if order < 1:
        raise InputError(f"the order of the expansion is {order}: it must be at least 1")
    return Identity(
        f"nested and composite expansion ({head}, K = {order})",
        r"[a^k]\,\phi=[a^k]\Bigl(\sum_{m\le K}\tfrac1{m!}D^mh(f_0)[\Delta_K^m]-y^\top"
        r"(f_0+\Delta_K)\Bigr),\quad k\le K",
        expansion_terms("composite", order, order, head),
        expansion_terms("nested", order, order, head),
    )


def expansion_terms(
    kind: Literal["composite", "nested"], order: int, terms: int, head: Head = "softmax"
) -> sp.Matrix:
    """Coefficients of a^0 … a^terms in one expansion of order K, as derivatives still to be taken.

    They are expressions in y_c and F_{ck}, the coefficient of a^{k−1} in logit c.

    Args:
        kind: "composite" expands φ, "nested" the logits and then h.
        order: K.
        terms: Highest coefficient.
        head: Which h.

    Raises:
        InputError: If the head is unknown.
    """
    F, y = _matrix("F", 2, order + 2), _vector("y")  # column k is the coefficient of a^k

    def logits(top: int) -> sp.Matrix:
        return sum((F[:, k] * _A**k for k in range(1, top + 1)), F[:, 0])

    if kind == "composite":
        curve = _partition(logits(order + 1), head) - y.dot(logits(order + 1))
        return _coefficients(curve, _A, terms)
    direction, t = _vector("delta"), sp.Symbol("t", real=True)
    h = sum(_coefficients(_partition(F[:, 0] + t * direction, head), t, order).doit())
    change = logits(order) - F[:, 0]
    curve = h.subs(dict(zip(direction, change, strict=True))) - y.dot(logits(order))
    return _coefficients(curve, _A, terms)


def _coefficients(curve: sp.Expr, variable: sp.Symbol, order: int) -> sp.Matrix:
    """Taylor coefficients at zero, as derivatives still to be taken."""
    return sp.Matrix(
        [
            sp.Subs(sp.Derivative(curve, (variable, k)), variable, 0) / math.factorial(k)
            for k in range(order + 1)
        ]
    )


def q_gap(head: Head = "softmax") -> Identity:
    """q − q̂ = (g − y)ᵀ J x̄' + (g − y)ᵀ(f − J x), for free logits f, Jacobian J, x and x̄'.

    q is the derivative of the loss along x̄' − x, taken on the logits' tangent.

    Raises:
        InputError: If the head is unknown.
    """
    f, y, J, x, mean = _vector("f"), _vector("y"), _matrix("J"), _vector("x"), _vector("m")
    g = _probabilities(f, head)
    tangent = f + _A * J * (mean - x)
    q = _coefficients(_partition(tangent, head) - y.dot(tangent), _A, 1)[1]
    return Identity(
        f"q against q̂ ({head})",
        r"q-\hat q=(g-y)^\top J\bar x'+(g-y)^\top(f-Jx)",
        q - (y - g).dot(f),
        (g - y).dot(J * mean) + (g - y).dot(f - J * x),
    )


def euler(relu: Relu = "max", *, bias: bool = False) -> Identity:
    """Homogeneity of a two-layer ReLU cell f = W relu(V x + b) + c, weighted by u = g − y.

    Without biases uᵀ(f − J x) = 0 (Euler). With them it is uᵀW diag(relu') b + uᵀc: each layer's
    share is the gradient at its output, times its bias.

    Args:
        relu: "max" for max(0, z) with relu' the step function, "sign" for (z + |z|)/2, or
            "pattern" for s z with a fixed activation pattern s.
        bias: Whether the cell has b and c.

    Raises:
        InputError: If the form of ReLU is unknown.
    """
    x, u, W, V, s = _vector("x"), _vector("u"), _matrix("W"), _matrix("V"), _vector("s")
    b, c = (_vector(name) if bias else sp.zeros(2, 1) for name in ("b", "c"))
    z = V * x + b
    if relu == "max":
        hidden, slope = z.applyfunc(lambda v: sp.Max(0, v)), z.applyfunc(sp.Heaviside)
    elif relu == "sign":
        hidden = z.applyfunc(lambda v: (v + sp.Abs(v)) / 2)
        slope = z.applyfunc(lambda v: (1 + sp.sign(v)) / 2)
    elif relu == "pattern":
        hidden, slope = s.multiply_elementwise(z), s
    else:
        raise InputError(f"unknown form of ReLU {relu!r}: use max, sign or pattern")
    f = W * hidden + c
    form = f"ReLU as {relu}, {'with' if bias else 'without'} biases"
    share = r"u^\top W\,\mathrm{diag}(\mathrm{relu}')\,b+u^\top c" if bias else "0"
    return Identity(
        f"homogeneity ({form})",
        rf"u^\top(f-Jx)={share}",
        u.dot(f - f.jacobian(x) * x),
        u.dot(W * slope.multiply_elementwise(b)) + u.dot(c),
    )


def gauss_newton(partners: int = 3) -> Identity:
    """Second order over all partners at once: mean of vᵀJᵀHJv, v = x' − x, is tr(H J S Jᵀ).

    S = Cov(x') + (x̄' − x)(x̄' − x)ᵀ is the mean of vvᵀ; H = diag(g) − g gᵀ with free g.

    Raises:
        InputError: If there is no partner.
    """
    if partners < 1:
        raise InputError(f"{partners} partners have no mean: pass at least one")
    J, x, H = _matrix("J"), _vector("x"), _curvature(_vector("g"), "softmax")
    points = [_vector(f"x^{{({j + 1})}}") for j in range(partners)]

    def mean(of: list[sp.Matrix]) -> sp.Matrix:
        return sum(of, sp.zeros(*of[0].shape)) / partners

    centre = mean(points)
    S = mean([(p - centre) * (p - centre).T for p in points]) + (centre - x) * (centre - x).T
    return Identity(
        "Gauss–Newton part over all partners",
        r"\tfrac1n\sum_{x'}(x'-x)^\top J^\top HJ(x'-x)=\mathrm{tr}(HJSJ^\top),"
        r"\quad S=\mathrm{Cov}(x')+(\bar x'-x)(\bar x'-x)^\top",
        mean([(J * (p - x)).T * H * (J * (p - x)) for p in points])[0],
        (H * J * S * J.T).trace(),
    )


def eta_hat(part: Literal["value", "gradient", "undetached"]) -> Identity:
    """What η̂ = |L|/|L + ηR| does to the total T = η̂ (L + ηR), L = L_mix.

    Detached, it leaves the value at |L| sign(L + ηR) and scales the gradient of L + ηR by η̂. Were
    it differentiated too, the total would be |L| sign(L + ηR) for every parameter, and R would have
    no influence. θ is one parameter, L and R free functions of it.

    Args:
        part: Which of these three.

    Raises:
        InputError: If the part is unknown.
    """
    theta, fixed = sp.symbols("theta theta_0", real=True)
    eta = sp.Symbol("eta", positive=True)
    L, R = (sp.Function(name, real=True) for name in "LR")

    def whole(t: sp.Symbol) -> sp.Expr:
        return L(t) + eta * R(t)

    def factor(t: sp.Symbol) -> sp.Expr:
        return sp.Abs(L(t)) / sp.Abs(whole(t))

    total, sign = factor(fixed) * whole(theta), sp.sign(whole(theta))
    parts = {
        "value": (
            r"\hat\eta\,(L+\eta R)=|L|\,\mathrm{sign}(L+\eta R)",
            total.subs(fixed, theta),
            sp.Abs(L(theta)) * sign,
        ),
        "gradient": (
            r"\nabla[\hat\eta\,(L+\eta R)]=\hat\eta\,(\nabla L+\eta\nabla R)"
            r"\quad\text{with }\hat\eta\text{ held constant}",
            sp.Subs(sp.Derivative(total, theta), fixed, theta),
            factor(theta) * (L(theta).diff(theta) + eta * R(theta).diff(theta)),
        ),
        "undetached": (
            r"\nabla[\hat\eta\,(L+\eta R)]=\mathrm{sign}(L)\,\mathrm{sign}(L+\eta R)\,\nabla L"
            r"\quad\text{with }\hat\eta\text{ differentiated}",
            sp.Derivative(total.subs(fixed, theta), theta),
            sp.sign(L(theta)) * sign * L(theta).diff(theta),
        ),
    }
    if part not in parts:
        raise InputError(f"unknown part {part!r} of η̂: use one of {', '.join(parts)}")
    return Identity(f"η̂ ({part})", *parts[part])


def identities() -> Iterator[Identity]:
    """All of them, in the order of the argument, at sizes that take seconds together."""
    yield from (relabelled_density(), relabelled_pairs())
    yield from (moments(), symmetric_moments(), mean_share())
    for head in HEADS:
        yield from (exponential_family(head), hessian(head))
        yield from (first_order_term(head), second_order_term(head))
        yield from (nested_expansion(order, head) for order in (1, 2, 3))
        yield q_gap(head)
    for bias in (False, True):
        yield from (euler(relu, bias=bias) for relu in ("max", "sign", "pattern"))
    yield gauss_newton()
    yield from (eta_hat(part) for part in ("value", "gradient", "undetached"))
