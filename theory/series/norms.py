"""Rules of normalisation layers, variances and vector norms.

Nested `torch.func.jvp` returns wrong numbers without a warning from second order on through
`layer_norm`, `instance_norm` and train-mode `batch_norm` (pytorch issue 198017 collects these).
The rules here are right to every order: they agree with the layers written out in elementary
operations, differentiated by nested jvp, and with Cauchy's integral over a circle in the complex
plane. The engine "nested" writes the first two layers out for the same reason.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from theory.errors import InputError
from theory.series import recurrences
from theory.series.functions import elementary
from theory.series.linear import mean_over, sum_over
from theory.series.mode import Series, aten
from theory.series.operands import Number, rule, stack_axes
from theory.series.pieces import absolute
from theory.series.products import square, times

# The layers also return statistics for a backward pass, which no series needs.
Normed = tuple[Series, Tensor, Tensor]
_sqrt = elementary(recurrences.sqrt)


@rule(aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm)
def _batch_norm(
    terms: int, x: Series, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    variance: Tensor | None, training: bool, momentum: float, eps: float,
) -> Normed:  # fmt: skip
    per_channel = (-1, *(1,) * (x.ndim - 2))
    if training or mean is None or variance is None:
        if len(x) > 1 and terms > 2:  # one example alone is instance norm, which couples nothing
            raise InputError(
                "Taylor terms above first order through batch norm with batch statistics are "
                "refused: they couple the examples, so that no example has a series of its own "
                "(Theorem 1 needs one fixed function); use batch_norm='eval' or order 1"
            )
        axes = (1, *range(3, x.stack.ndim))
        return _scaled(_normalized(terms, x.stack, axes, eps), weight, bias, per_channel)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return _scaled(x.stack, scale, shift, per_channel)


@rule(aten._native_batch_norm_legit_no_training)
def _batch_norm_evaluated(terms: int, *args: Any) -> Normed:
    *before, momentum, eps = args
    return _batch_norm(terms, *before, False, momentum, eps)


@rule(aten.native_layer_norm)
def _layer_norm(
    terms: int, x: Series, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Normed:  # fmt: skip
    axes = tuple(range(-len(shape), 0))
    return _scaled(_normalized(terms, x.stack, axes, eps), weight, bias, tuple(shape))


@rule(aten.native_group_norm)
def _group_norm(
    terms: int, x: Series, weight: Tensor | None, bias: Tensor | None, batch: int, channels: int,
    area: int, groups: int, eps: float,
) -> Normed:  # fmt: skip
    grouped = x.stack.reshape(len(x.stack), batch, groups, -1)
    out = _normalized(terms, grouped, (-1,), eps).reshape(-1, *x.shape)
    return _scaled(out, weight, bias, (-1, *(1,) * (x.ndim - 2)))


def _normalized(terms: int, u: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """(u − mean) / √(variance + ε) over the given axes of the stack."""
    centred = u - u.mean(axes, keepdim=True)
    variance = times(terms, centred, centred).mean(axes, keepdim=True)
    variance[0] += eps
    inverse = recurrences.apply(recurrences.power, terms, variance, exponent=-0.5)
    return times(terms, centred, inverse)


def _scaled(
    u: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Normed:
    out = u if weight is None else u * weight.reshape(shape)
    if bias is not None:
        out[0].add_(bias.reshape(shape))
    return Series(out), u.new_empty(0), u.new_empty(0)


@rule(aten.var)
def _var(
    terms: int, x: Series, axes: Any = None, *, correction: Number | None = 1, keepdim: bool = False
) -> Series:
    chosen = stack_axes(axes, x.ndim)
    centred = x.stack - x.stack.mean(chosen, keepdim=True)
    count = math.prod(x.stack.shape[axis] for axis in chosen)
    squares = times(terms, centred, centred).sum(chosen, keepdim)
    return Series(squares / (count - (1 if correction is None else correction)))


@rule(aten.std)
def _std(terms: int, x: Series, axes: Any = None, **settings: Any) -> Series:
    return _sqrt(terms, _var(terms, x, axes, **settings))


@rule(aten.var_mean)
def _var_mean(terms: int, x: Series, axes: Any = None, **settings: Any) -> tuple[Series, Series]:
    keepdim = settings.get("keepdim", False)
    return _var(terms, x, axes, **settings), mean_over(terms, x, axes, keepdim)


@rule(aten.linalg_vector_norm)
def _vector_norm(
    terms: int, x: Series, order: Number = 2, axes: Any = None, keepdim: bool = False, **dtype: Any
) -> Series:
    if order == 1:
        return sum_over(terms, absolute(terms, x), axes, keepdim)
    if order != 2:
        raise InputError(
            f"a vector norm of order {order} has no rule for Taylor series: use 1 or 2"
        )
    return _sqrt(terms, sum_over(terms, square(terms, x), axes, keepdim))
