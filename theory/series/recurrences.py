"""Elementary functions of truncated power series, by recurrences from differential equations.

A series u(a) = Σ_k u_k a^k is the list of its coefficients u_0 … u_{T−1}; those not in the list are
zero. For y = g(u) an equation such as y' = (1 − y²) u' (tanh), compared coefficient by
coefficient, gives y_k from lower ones in O(k) products:

    k y_k = Σ_{j ≤ k} j u_j s_{k−j},   s = 1 − y²

(Griewank and Walther, "Evaluating Derivatives", 2nd ed., 2008, chapter 13). Coefficients are those
of the series, derivatives divided by k!, so that no factorial overflows.

A rule maps one or more series and the number of terms wanted to the series of the result.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Coefficients = Sequence[Tensor]
Rule = Callable[..., list[Tensor]]
Product = tuple[float, Tensor, Tensor]
# Elements of one coefficient in a block: large enough to hide the cost of a call, small enough for
# all coefficients of an order-8 recurrence to stay in a core's cache.
BLOCK = 2**15
_compiling = False


def _total(products: Sequence[Product], like: Tensor) -> Tensor:
    """Σ scale · a · b."""
    if not products:
        return torch.zeros_like(like)
    (scale, a, b), *others = products
    total = a * b
    if torch.compiler.is_compiling():  # out of place, which the compiler fuses into one pass
        for other, a, b in others:
            total = total + (other / scale) * (a * b)
        return total if scale == 1 else total * scale
    for other, a, b in others:
        total.addcmul_(a, b, value=other / scale)
    return total if scale == 1 else total.mul_(scale)


def _products(a: Coefficients, b: Coefficients, k: int, start: int = 0) -> list[Product]:
    """The terms of Σ_{j ≥ start} a_j b_{k−j}."""
    js = range(max(start, k - len(b) + 1), min(k, len(a) - 1) + 1)
    return [(1.0, a[j], b[k - j]) for j in js]


def _square_products(y: Coefficients, k: int, start: int = 0) -> list[Product]:
    """The terms of Σ y_j y_{k−j}, start ≤ j ≤ k − start, each pair once."""
    js = range(max(start, k - len(y) + 1), (k + 1) // 2)
    products = [(2.0, y[j], y[k - j]) for j in js]
    if k % 2 == 0 and start <= k // 2 < len(y):
        products.append((1.0, y[k // 2], y[k // 2]))
    return products


def _integral(u: Coefficients, s: Coefficients, k: int) -> Tensor:
    """The k-th coefficient of y where y' = s u'."""
    js = range(max(1, k - len(s) + 1), min(k, len(u) - 1) + 1)
    return _total([(j / k, u[j], s[k - j]) for j in js], u[0])


def _rest(u: Coefficients, k: int, total: Tensor) -> Tensor:
    """u_k − total."""
    return u[k] - total if k < len(u) else -total


def product(terms: int, a: Coefficients, b: Coefficients) -> list[Tensor]:
    """a b."""
    return [_total(_products(a, b, k), a[0]) for k in range(min(terms, len(a) + len(b) - 1))]


def square(terms: int, u: Coefficients) -> list[Tensor]:
    """u²."""
    return [_total(_square_products(u, k), u[0]) for k in range(min(terms, 2 * len(u) - 1))]


def quotient(terms: int, a: Coefficients, b: Coefficients) -> list[Tensor]:
    """y = a / b, from a = y b."""
    y = [a[0] / b[0]]
    for k in range(1, terms):
        y.append(_rest(a, k, _total(_products(y, b, k), y[0])) / b[0])
    return y


def power(terms: int, u: Coefficients, exponent: float) -> list[Tensor]:
    """y = u^p, from u y' = p y u'; not for u_0 = 0."""
    y = [u[0] ** exponent]
    for k in range(1, terms):
        js = range(1, min(k, len(u) - 1) + 1)
        scaled = [((exponent * j - (k - j)) / k, u[j], y[k - j]) for j in js]
        y.append(_total([term for term in scaled if term[0]], u[0]) / u[0])
    return y


def sqrt(terms: int, u: Coefficients) -> list[Tensor]:
    """y = √u, from u = y²."""
    y = [u[0].sqrt()]
    twice = 2 * y[0]
    for k in range(1, terms):
        y.append(_rest(u, k, _total(_square_products(y, k, 1), u[0])) / twice)
    return y


def exp(terms: int, u: Coefficients) -> list[Tensor]:
    """y = e^u, from y' = y u'."""
    y = [u[0].exp()]
    for k in range(1, terms):
        y.append(_integral(u, y, k))
    return y


def expm1(terms: int, u: Coefficients) -> list[Tensor]:
    """e^u − 1, without cancellation in the constant term."""
    return [u[0].expm1(), *exp(terms, u)[1:]]


def _slope_integral(
    terms: int, u: Coefficients, divisor: Coefficients, first: Tensor
) -> list[Tensor]:
    """y with y_0 = first and divisor · y' = u'."""
    y = [first]
    for k in range(1, terms):
        js = range(max(1, k - len(divisor) + 1), k)
        total = _total([(j / k, y[j], divisor[k - j]) for j in js], first)
        y.append(_rest(u, k, total) / divisor[0])
    return y


def log(terms: int, u: Coefficients) -> list[Tensor]:
    """y = log u, from u y' = u'."""
    return _slope_integral(terms, u, u, u[0].log())


def log1p(terms: int, u: Coefficients) -> list[Tensor]:
    """log(1 + u), without cancellation in the constant term."""
    return _slope_integral(terms, u, [1 + u[0], *u[1:]], u[0].log1p())


def atan(terms: int, u: Coefficients) -> list[Tensor]:
    """y = arctan u, from (1 + u²) y' = u'."""
    squared = square(terms, u)
    return _slope_integral(terms, u, [1 + squared[0], *squared[1:]], u[0].atan())


def sin_cos(terms: int, u: Coefficients) -> tuple[list[Tensor], list[Tensor]]:
    """sin u and cos u together: sin' = cos u', cos' = −sin u'."""
    sines, cosines = [u[0].sin()], [u[0].cos()]
    for k in range(1, terms):
        sine, cosine = _integral(u, cosines, k), -_integral(u, sines, k)
        sines.append(sine)
        cosines.append(cosine)
    return sines, cosines


def sin(terms: int, u: Coefficients) -> list[Tensor]:
    """Sine."""
    return sin_cos(terms, u)[0]


def cos(terms: int, u: Coefficients) -> list[Tensor]:
    """Cosine."""
    return sin_cos(terms, u)[1]


def tanh(terms: int, u: Coefficients) -> list[Tensor]:
    """y = tanh u, from y' = s u' with s = 1 − y²."""
    # 1 − y² would cancel at large |u|.
    y, s = [u[0].tanh()], [u[0].cosh() ** -2]
    for k in range(1, terms):
        y.append(_integral(u, s, k))
        if k + 1 < terms:
            s.append(-_total(_square_products(y, k), y[0]))
    return y


def sigmoid(terms: int, u: Coefficients) -> list[Tensor]:
    """y = 1/(1 + e^{−u}), from y' = s u' with s = y − y²."""
    y = [u[0].sigmoid()]
    # y_0 (1 − y_0) and 1 − 2 y_0 in forms that do not cancel.
    other = (-u[0]).sigmoid()
    s, slope = [y[0] * other], other - y[0]
    for k in range(1, terms):
        y.append(_integral(u, s, k))
        if k + 1 < terms:
            s.append(y[k] * slope - _total(_square_products(y, k, 1), y[0]))
    return y


def softplus(terms: int, u: Coefficients) -> list[Tensor]:
    """y = log(1 + e^u), from y' = sigmoid(u) u'."""
    s = sigmoid(terms - 1, u)
    # max(u, 0) + log(1 + e^{−|u|}) has no threshold above which it is wrong.
    y = [u[0].clamp(min=0) + (-u[0].abs()).exp().log1p()]
    return y + [_integral(u, s, k) for k in range(1, terms)]


def gelu(terms: int, u: Coefficients) -> list[Tensor]:
    """u Φ(u) with Φ' = φ(u) u' and φ' = −φ (u²/2)'."""
    density = exp(terms - 1, [-0.5 * c for c in square(terms - 1, u)])
    density = [c / math.sqrt(2 * math.pi) for c in density]
    # erfc keeps its relative accuracy in the lower tail, where 1 + erf would cancel.
    cdf = [0.5 * (u[0] * -math.sqrt(0.5)).erfc()]
    cdf += [_integral(u, density, k) for k in range(1, terms)]
    return product(terms, u, cdf)


def gelu_tanh(terms: int, u: Coefficients) -> list[Tensor]:
    """u/2 (1 + tanh z) = u sigmoid(2 z) with z = √(2/π) (u + 0.044715 u³)."""
    scale = 2 * math.sqrt(2 / math.pi)
    squared = [0.044715 * scale * c for c in square(terms, u)]
    squared[0] = squared[0] + scale
    return product(terms, u, sigmoid(terms, product(terms, u, squared)))


def silu(terms: int, u: Coefficients) -> list[Tensor]:
    """u sigmoid(u)."""
    return product(terms, u, sigmoid(terms, u))


def mish(terms: int, u: Coefficients) -> list[Tensor]:
    """u tanh(softplus(u))."""
    return product(terms, u, tanh(terms, softplus(terms, u)))


def erf(terms: int, u: Coefficients) -> list[Tensor]:
    """y = erf u, from y' = 2/√π e^{−u²} u'."""
    slope = exp(terms - 1, [-c for c in square(terms - 1, u)])
    slope = [2 / math.sqrt(math.pi) * c for c in slope]
    return [u[0].erf(), *(_integral(u, slope, k) for k in range(1, terms))]


def apply(rule: Rule, terms: int, *series: Tensor, **settings: float) -> Tensor:
    """The coefficients of rule(series…), stacked.

    Args:
        rule: One of this module.
        terms: Largest number of coefficients of the result, at least 2.
        series: Stacks of coefficients whose shapes beyond the first axis broadcast.
        **settings: Of the rule.
    """
    if len({s.shape[1:] for s in series}) > 1:
        return torch.stack(rule(terms, *(s.unbind() for s in series), **settings))
    shape = series[0].shape[1:]
    flat = [s.reshape(len(s), -1) for s in series]
    if _compiling:
        lengths = tuple(len(s) for s in series)
        fused = _fused(rule, terms, lengths, tuple(settings.items()))
        return fused(*flat).reshape(-1, *shape)
    size = flat[0].shape[1]
    block = BLOCK * torch.get_num_threads()
    if size <= block:
        return torch.stack(rule(terms, *(s.unbind() for s in flat), **settings)).reshape(-1, *shape)
    # In blocks, so that the many products find their factors in the cache.
    out = flat[0].new_empty(terms, size)
    for i in range(0, size, block):
        part = slice(i, i + block)
        found = rule(terms, *(s[:, part].unbind() for s in flat), **settings)
        for row, coefficient in zip(out, found, strict=False):
            row[part] = coefficient
    return out[: len(found)].reshape(-1, *shape)


@functools.cache
def _fused(
    rule: Rule, terms: int, lengths: tuple[int, ...], settings: tuple[tuple[str, float], ...]
) -> Callable[..., Tensor]:
    """The rule as one kernel; a kernel for each number of coefficients."""

    def run(*series: Tensor) -> Tensor:
        return torch.stack(rule(terms, *(s.unbind() for s in series), **dict(settings)))

    return torch.compile(run, dynamic=False)


@contextmanager
def compiled() -> Iterator[None]:
    """While active, every rule is compiled on first use (seconds each) and runs as one kernel."""
    global _compiling
    before, _compiling = _compiling, True
    try:
        yield
    finally:
        _compiling = before
