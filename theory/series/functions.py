"""Rules of elementary functions and of what is built of them."""

import math
from typing import Any

import torch
from torch import Tensor

from theory.series import recurrences
from theory.series.linear import add, sub, sum_over
from theory.series.mode import Rule, Series, aten
from theory.series.operands import (
    Number,
    Operand,
    matched,
    padded,
    rule,
    stack_axes,
    stack_axis,
    stack_of,
    without,
)
from theory.series.pieces import absolute, where
from theory.series.products import mul, over, times


def elementary(recurrence: recurrences.Rule, **settings: float) -> Rule:
    """The rule that applies a recurrence."""
    return lambda terms, x: Series(recurrences.apply(recurrence, terms, x.stack, **settings))


_exp, _log = elementary(recurrences.exp), elementary(recurrences.log)
_softplus_of, _sigmoid = elementary(recurrences.softplus), elementary(recurrences.sigmoid)
for _name in (
    *("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh", "atan", "sigmoid", "silu"),
    *("mish", "erf"),
):
    rule(getattr(aten, _name))(elementary(getattr(recurrences, _name)))
rule(aten.rsqrt)(elementary(recurrences.power, exponent=-0.5))
rule(aten.reciprocal)(elementary(recurrences.power, exponent=-1.0))


@rule(aten.pow)
def _pow(terms: int, x: Operand, exponent: Operand) -> Series:
    if not isinstance(x, Tensor):
        log = math.log(x) if x > 0 else -math.inf if x == 0 else math.nan
        return _exp(terms, mul(terms, exponent, log))
    if isinstance(exponent, Tensor) and (exponent.ndim or isinstance(exponent, Series)):
        # The powers of a negative number exist for whole constant exponents alone.
        constant = isinstance(exponent, Tensor) and not isinstance(exponent, Series)
        sign = stack_of(x)[0].sign() ** exponent if constant else 1.0
        log = _log(terms, absolute(terms, Series(stack_of(x))) if constant else Series(stack_of(x)))
        return mul(terms, _exp(terms, mul(terms, exponent, log)), sign)
    exponent = float(exponent)
    if exponent < 0 or exponent != int(exponent):
        return elementary(recurrences.power, exponent=float(exponent))(terms, x)
    # Whole powers are products, which are right at zero too.
    base, rest = stack_of(x), int(exponent)
    result = torch.ones_like(base[:1])
    while rest:
        result = times(terms, result, base) if rest % 2 else result
        rest //= 2
        base = times(terms, base, base) if rest else base
    return Series(result)


@rule(aten.gelu)
def _gelu(terms: int, x: Series, *, approximate: str = "none") -> Series:
    recurrence = recurrences.gelu if approximate == "none" else recurrences.gelu_tanh
    return elementary(recurrence)(terms, x)


@rule(aten.glu)
def _glu(terms: int, x: Series, axis: int = -1) -> Series:
    value, gate = x.stack.chunk(2, stack_axis(axis))
    return mul(terms, Series(value), _sigmoid(terms, Series(gate)))


@rule(aten.softplus)
def _softplus(terms: int, x: Series, beta: Number = 1, threshold: Number = 20) -> Series:
    u = x.stack if beta == 1 else x.stack * beta
    out = _softplus_of(terms, Series(u)).stack
    linear = u[0] > threshold  # there PyTorch's softplus is the identity
    if bool(linear.any()):
        out = torch.where(linear, padded(u, len(out)), out)
    return Series(out if beta == 1 else out / beta)


@rule(aten.log_sigmoid_forward)
def _log_sigmoid(terms: int, x: Series) -> tuple[Series, Tensor]:
    return Series(-_softplus_of(terms, Series(-x.stack)).stack), x.stack.new_empty(0)


@rule(aten.logaddexp)
def _logaddexp(terms: int, x: Tensor, y: Tensor) -> Series:
    u, v = matched(x, y)
    first = u[0] >= v[0]
    larger = where(terms, first, Series(u), Series(v))
    smaller = where(terms, first, Series(v), Series(u))
    return add(terms, larger, _softplus_of(terms, sub(terms, smaller, larger)))


@rule(aten.elu)
def _elu(
    terms: int, x: Series, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1
) -> Series:
    u = x.stack
    # Capped, so that it cannot overflow where the other piece is taken.
    below = torch.cat([u[:1].clamp(max=0), u[1:]]) * input_scale
    curve = recurrences.apply(recurrences.expm1, terms, below) * (alpha * scale)
    return where(terms, u[0] > 0, Series(u * scale), Series(curve))


@rule(aten.celu)
def _celu(terms: int, x: Series, alpha: Number = 1) -> Series:
    return _elu(terms, x, alpha, 1, 1 / alpha)


@rule(aten._softmax, aten._safe_softmax)
def _softmax(terms: int, x: Series, axis: int, *dtype: Any) -> Series:
    powers = _exp(terms, _shifted(x, axis)[0])
    total = sum_over(terms, powers, axis, keepdim=True).stack
    # A row that is masked out entirely sums to zero; `_safe_softmax` makes it zero.
    total[0].masked_fill_(total[0] == 0, 1.0)
    return Series(over(terms, powers.stack, total))


@rule(aten._log_softmax)
def _log_softmax(terms: int, x: Series, axis: int, *dtype: Any) -> Series:
    shifted = _shifted(x, axis)[0]
    total = sum_over(terms, _exp(terms, shifted), axis, keepdim=True)
    return sub(terms, shifted, _log(terms, total))


@rule(aten.logsumexp)
def _logsumexp(terms: int, x: Series, axes: Any, keepdim: bool = False) -> Series:
    shifted, largest = _shifted(x, axes)
    total = sum_over(terms, _exp(terms, shifted), axes, keepdim=True)
    out = add(terms, _log(terms, total), largest)
    return out if keepdim else Series(without(out.stack, stack_axes(axes, x.ndim)))


def _shifted(x: Series, axes: Any) -> tuple[Series, Tensor]:
    """X − m and m, the largest constant term along the axes: exp of it cannot overflow."""
    largest = x.stack[0].amax(stack_axes(axes, x.ndim), keepdim=True)
    largest.masked_fill_(largest.isinf(), 0.0)
    return sub(0, x, largest), largest
