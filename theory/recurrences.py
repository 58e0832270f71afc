"""Elementary functions of truncated power series, by the recurrences of their differential equations.

A series u(a) = Σ_k u_k a^k is the stack of its coefficients u_0 … u_{T−1}; those that are not stored
are zero. For y = g(u) an equation such as y' = (1 − y²) u' (tanh), compared coefficient by
coefficient, gives y_k from lower ones in O(k) products:

    k y_k = Σ_{j ≤ k} j u_j s_{k−j},   s = 1 − y²

(Griewank and Walther, "Evaluating Derivatives", 2nd ed., 2008, chapter 13). Coefficients are those
of the series, derivatives divided by k!, so that no factorial overflows.

A rule fills `y`, the stack of the result; every product is accumulated in place, on blocks of
elements that stay in cache.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[..., None]
# Elements of one coefficient in a block: large enough to hide the cost of a call, small enough for
# the stacks of an order-8 recurrence to stay in a core's cache.
BLOCK = 2**15
_compiled = False


def add_products(
    out: Tensor, a: Tensor, b: Tensor, k: int, *, start: int = 0, scale: float = 1.0
) -> None:
    """Adds scale · Σ_{j ≥ start} a_j b_{k−j} to `out`, over the coefficients that are stored."""
    for j in range(max(start, k - len(b) + 1), min(k, len(a) - 1) + 1):
        out.addcmul_(a[j], b[k - j], value=scale)


def _integrate(y: Tensor, u: Tensor, s: Tensor, k: int) -> None:
    """The k-th coefficient of y where y' = s u': 1/k Σ_{j ≥ 1} j u_j s_{k−j}."""
    y[k].zero_()
    for j in range(max(1, k - len(s) + 1), min(k, len(u) - 1) + 1):
        y[k].addcmul_(u[j], s[k - j], value=j / k)


def _add_square(out: Tensor, y: Tensor, k: int, scale: float, *, inner: bool = False) -> None:
    """Adds scale · Σ_j y_j y_{k−j}, using its symmetry; `inner` leaves out j = 0 and j = k."""
    for j in range(max(int(inner), k - len(y) + 1), (k + 1) // 2):
        out.addcmul_(y[j], y[k - j], value=2 * scale)
    if k % 2 == 0 and k // 2 < len(y) and not (inner and k == 0):
        out.addcmul_(y[k // 2], y[k // 2], value=scale)


def product(a: Tensor, b: Tensor, y: Tensor) -> None:
    """y = a b."""
    for k in range(len(y)):
        y[k].zero_()
        add_products(y[k], a, b, k)


def square(u: Tensor, y: Tensor) -> None:
    """y = u²."""
    for k in range(len(y)):
        y[k].zero_()
        _add_square(y[k], u, k, 1.0)


def quotient(a: Tensor, b: Tensor, y: Tensor) -> None:
    """y = a / b, from a = y b."""
    for k in range(len(y)):
        y[k].copy_(a[k]) if k < len(a) else y[k].zero_()
        add_products(y[k], y[:k], b, k, scale=-1.0)
        y[k].div_(b[0])


def power(u: Tensor, y: Tensor, exponent: float) -> None:
    """y = u^p, from u y' = p y u'; not for u_0 = 0."""
    torch.pow(u[0], exponent, out=y[0])
    for k in range(1, len(y)):
        y[k].zero_()
        for j in range(1, min(k, len(u) - 1) + 1):
            y[k].addcmul_(u[j], y[k - j], value=(exponent * j - (k - j)) / k)
        y[k].div_(u[0])


def sqrt(u: Tensor, y: Tensor) -> None:
    """y = √u, from u = y²."""
    torch.sqrt(u[0], out=y[0])
    for k in range(1, len(y)):
        y[k].copy_(u[k]) if k < len(u) else y[k].zero_()
        _add_square(y[k], y[:k], k, -1.0, inner=True)
        y[k].div_(y[0]).mul_(0.5)


def exp(u: Tensor, y: Tensor) -> None:
    """y = e^u, from y' = y u'."""
    torch.exp(u[0], out=y[0])
    for k in range(1, len(y)):
        _integrate(y, u, y, k)


def expm1(u: Tensor, y: Tensor) -> None:
    """y = e^u − 1, without cancellation in y_0."""
    exp(u, y)
    torch.expm1(u[0], out=y[0])


def log(u: Tensor, y: Tensor) -> None:
    """y = log u, from u y' = u'."""
    torch.log(u[0], out=y[0])
    for k in range(1, len(y)):
        y[k].copy_(u[k]) if k < len(u) else y[k].zero_()
        for j in range(max(1, k - len(u) + 1), k):
            y[k].addcmul_(y[j], u[k - j], value=-j / k)
        y[k].div_(u[0])


def log1p(u: Tensor, y: Tensor) -> None:
    """y = log(1 + u), without cancellation in y_0."""
    shifted = u.clone()
    shifted[0] += 1
    log(shifted, y)
    torch.log1p(u[0], out=y[0])


def sin_cos(u: Tensor, sin: Tensor, cos: Tensor) -> None:
    """sin u and cos u together: sin' = cos u', cos' = −sin u'."""
    torch.sin(u[0], out=sin[0])
    torch.cos(u[0], out=cos[0])
    for k in range(1, len(sin)):
        _integrate(sin, u, cos, k)
        _integrate(cos, u, sin, k)
        cos[k].neg_()


def sin(u: Tensor, y: Tensor) -> None:
    """y = sin u."""
    sin_cos(u, y, torch.empty_like(y))


def cos(u: Tensor, y: Tensor) -> None:
    """y = cos u."""
    sin_cos(u, torch.empty_like(y), y)


def tanh(u: Tensor, y: Tensor) -> None:
    """y = tanh u, from y' = s u' with s = 1 − y²."""
    s = torch.empty_like(y)
    torch.tanh(u[0], out=y[0])
    # 1 − y² would cancel at large |u|.
    torch.cosh(u[0], out=s[0]).pow_(-2)
    for k in range(1, len(y)):
        _integrate(y, u, s, k)
        if k + 1 < len(y):
            s[k].zero_()
            _add_square(s[k], y, k, -1.0)


def sigmoid(u: Tensor, y: Tensor) -> None:
    """y = 1/(1 + e^{−u}), from y' = s u' with s = y − y²."""
    s = torch.empty_like(y)
    torch.sigmoid(u[0], out=y[0])
    # y_0 (1 − y_0) and 1 − 2 y_0 in forms that do not cancel.
    torch.sigmoid(-u[0], out=s[0])
    slope = s[0] - y[0]
    s[0].mul_(y[0])
    for k in range(1, len(y)):
        _integrate(y, u, s, k)
        if k + 1 < len(y):
            torch.mul(y[k], slope, out=s[k])
            _add_square(s[k], y, k, -1.0, inner=True)


def softplus(u: Tensor, y: Tensor) -> None:
    """y = log(1 + e^u), from y' = sigmoid(u) u'."""
    s = torch.empty_like(y)
    sigmoid(u, s)
    # max(u, 0) + log(1 + e^{−|u|}) has no threshold above which it is wrong.
    torch.clamp(u[0], min=0, out=y[0]).add_(u[0].abs().neg_().exp_().log1p_())
    for k in range(1, len(y)):
        _integrate(y, u, s, k)


def normal_cdf(u: Tensor, y: Tensor, slope: Tensor) -> None:
    """y = Φ(u), and its integrand φ(u) in `slope`: φ' = −φ (u²/2)', Φ' = φ u'."""
    half = u.new_empty(min(2 * len(u) - 1, len(y)), *u.shape[1:])
    square(u, half)
    half.mul_(-0.5)
    exp(half, slope)
    slope.div_(math.sqrt(2 * math.pi))
    # erfc keeps its relative accuracy in the lower tail, where 1 + erf would cancel.
    torch.mul(u[0], -math.sqrt(0.5), out=y[0])
    y[0].erfc_().mul_(0.5)
    for k in range(1, len(y)):
        _integrate(y, u, slope, k)


def gelu(u: Tensor, y: Tensor) -> None:
    """y = u Φ(u)."""
    cdf, density = torch.empty_like(y), torch.empty_like(y)
    normal_cdf(u, cdf, density)
    product(u, cdf, y)


def gelu_tanh(u: Tensor, y: Tensor) -> None:
    """y = u/2 (1 + tanh z) = u sigmoid(2 z) with z = √(2/π) (u + 0.044715 u³)."""
    terms = len(y)
    squared = u.new_empty(min(2 * len(u) - 1, terms), *u.shape[1:])
    square(u, squared)
    scale = 2 * math.sqrt(2 / math.pi)
    squared.mul_(0.044715 * scale)[0].add_(scale)
    z = u.new_empty(min(len(squared) + len(u) - 1, terms), *u.shape[1:])
    product(u, squared, z)
    gate = torch.empty_like(y)
    sigmoid(z, gate)
    product(u, gate, y)


def silu(u: Tensor, y: Tensor) -> None:
    """y = u sigmoid(u)."""
    gate = torch.empty_like(y)
    sigmoid(u, gate)
    product(u, gate, y)


def mish(u: Tensor, y: Tensor) -> None:
    """y = u tanh(softplus(u))."""
    inner, gate = torch.empty_like(y), torch.empty_like(y)
    softplus(u, inner)
    tanh(inner, gate)
    product(u, gate, y)


def erf(u: Tensor, y: Tensor) -> None:
    """y = erf u, from y' = 2/√π e^{−u²} u'."""
    squared = u.new_empty(min(2 * len(u) - 1, len(y)), *u.shape[1:])
    square(u, squared)
    slope = torch.empty_like(y)
    exp(squared.neg_(), slope)
    slope.mul_(2 / math.sqrt(math.pi))
    torch.erf(u[0], out=y[0])
    for k in range(1, len(y)):
        _integrate(y, u, slope, k)


def apply(rule: Rule, terms: int, *series: Tensor, **settings: float) -> Tensor:
    """The stack of rule(series…), with `terms` coefficients; all series have one shape.

    Elementwise rules only: the elements are taken in blocks.
    """
    shape = series[0].shape[1:]
    flat = [s.reshape(len(s), -1) for s in series]
    if _compiled:
        return _fused(rule, terms, tuple(settings.items()))(*flat).reshape(terms, *shape)
    y = flat[0].new_empty(terms, flat[0].shape[1])
    block = BLOCK * torch.get_num_threads()
    for start in range(0, y.shape[1], block):
        part = slice(start, start + block)
        rule(*(s[:, part] for s in flat), y[:, part], **settings)
    return y.reshape(terms, *shape)
