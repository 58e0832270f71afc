"""Rules of piecewise operations: the piece that the constant term lies on.

Where it lies on two, as at a tie in max-pooling, the conventions are those of automatic
differentiation.
"""

from typing import Any

import torch
from torch import Tensor

from theory.series.linear import add
from theory.series.mode import Rule, Series, aten
from theory.series.operands import (
    Operand,
    lifted,
    matched,
    padded,
    rule,
    stack_axes,
    stack_axis,
    stack_of,
    stacks_of,
    without,
)
from theory.series.products import mul


@rule(aten.relu)
def _relu(terms: int, x: Series) -> Series:
    u = x.stack
    out = torch.empty_like(u)
    torch.clamp(u[0], min=0, out=out[0])
    for k in range(1, len(u)):
        aten.threshold_backward.grad_input(u[k], u[0], 0, grad_input=out[k])
    return Series(out)


def _affine_pieces(operation: Any, backward: Any, *defaults: float, extra: tuple = ()) -> Rule:
    """An elementwise operation of affine pieces, whose slopes PyTorch knows as a backward."""

    def act(terms: int, x: Series, *given: float) -> Series:
        settings = (*given, *defaults[len(given) :])
        u = x.stack
        rest = [backward(v, u[0], *settings, *extra) for v in u[1:]]
        return Series(torch.stack([operation(u[0], *settings), *rest]))

    return act


_hardtanh = _affine_pieces(aten.hardtanh, aten.hardtanh_backward, -1, 1)
rule(aten.hardtanh)(_hardtanh)
rule(aten.hardshrink)(_affine_pieces(aten.hardshrink, aten.hardshrink_backward, 0.5))
rule(aten.softshrink)(_affine_pieces(aten.softshrink, aten.softshrink_backward, 0.5))
rule(aten.leaky_relu)(
    _affine_pieces(aten.leaky_relu, aten.leaky_relu_backward, 0.01, extra=(False,))
)


@rule(aten.threshold)
def _threshold(terms: int, x: Series, threshold: float, value: float) -> Series:
    return where(terms, x.stack[0] > threshold, x, value)


@rule(aten._prelu_kernel)
def _prelu(terms: int, x: Series, weight: Tensor) -> Series:
    return where(terms, x.stack[0] > 0, x, mul(terms, x, weight))


@rule(aten.abs)
def absolute(terms: int, x: Series) -> Series:
    """|x|."""
    return Series(x.stack * x.stack[0].sign())


@rule(aten.hardsigmoid)
def _hardsigmoid(terms: int, x: Series) -> Series:
    return _hardtanh(terms, add(terms, mul(terms, x, 1 / 6), 0.5), 0, 1)


@rule(aten.hardswish)
def _hardswish(terms: int, x: Series) -> Series:
    return mul(terms, x, _hardsigmoid(terms, x))


@rule(aten.clamp)
def _clamp(terms: int, x: Series, low: Any = None, high: Any = None) -> Series:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else _maximum(terms, x, low)
        return x if high is None else _minimum(terms, x, high)
    u = x.stack
    inside = torch.ones_like(u[0], dtype=torch.bool)
    inside = inside if low is None else inside & (u[0] >= low)
    inside = inside if high is None else inside & (u[0] <= high)
    return Series(torch.cat([torch.clamp(u[:1], low, high), u[1:] * inside]))


rule(aten.clamp_min)(lambda terms, x, low: _clamp(terms, x, low))
rule(aten.clamp_max)(lambda terms, x, high: _clamp(terms, x, None, high))


@rule(aten.where)
def where(terms: int, condition: Tensor, x: Operand, y: Operand) -> Series:
    """X where the condition holds, y elsewhere."""
    u, v = stacks_of(x, y)
    longest = max(len(u), len(v))
    ndim = max(condition.ndim, u.ndim - 1, v.ndim - 1)
    u, v = (padded(lifted(stack, ndim), longest) for stack in (u, v))
    return Series(torch.where(condition, u, v))


@rule(aten.masked_fill)
def _masked_fill(terms: int, x: Tensor, mask: Tensor, value: Operand) -> Series:
    return where(terms, mask, value, x)


@rule(aten.maximum)
def _maximum(terms: int, x: Tensor, y: Tensor) -> Series:
    u, v = matched(x, y)
    larger = where(terms, u[0] > v[0], Series(u), Series(v))
    middle = mul(terms, add(terms, Series(u), Series(v)), 0.5)
    return where(terms, u[0] == v[0], middle, larger)


@rule(aten.minimum)
def _minimum(terms: int, x: Tensor, y: Tensor) -> Series:
    return Series(-_maximum(terms, Series(-stack_of(x)), Series(-stack_of(y))).stack)


@rule(aten.amax, aten.max)
def _amax(terms: int, x: Series, axes: Any = None, keepdim: bool = False) -> Any:
    if isinstance(axes, Tensor):
        return _maximum(terms, x, axes)
    if isinstance(axes, int):  # over one axis, which also gives the index
        return _picked(x, torch.max(x.stack[0], axes, keepdim).indices, axes, keepdim)
    chosen, u = stack_axes(axes, x.ndim), x.stack
    largest = u[:1].amax(chosen, keepdim=True)
    ties = (u[:1] == largest).to(u.dtype)  # which share the slope
    rest = (u[1:] * ties).sum(chosen, keepdim=True) / ties.sum(chosen, keepdim=True)
    out = torch.cat([largest, rest])
    return Series(out if keepdim else without(out, chosen))


@rule(aten.amin, aten.min)
def _amin(terms: int, x: Series, axes: Any = None, keepdim: bool = False) -> Any:
    if isinstance(axes, Tensor):
        return _minimum(terms, x, axes)
    result = _amax(terms, Series(-x.stack), axes, keepdim)
    if isinstance(result, Series):
        return Series(-result.stack)
    return Series(-result[0].stack), result[1]


def _picked(x: Series, index: Tensor, axis: int, keepdim: bool = True) -> tuple[Series, Tensor]:
    """The entries at an index along an axis, and the index."""
    place = index if keepdim else index.unsqueeze(axis)
    values = x.stack.gather(stack_axis(axis), place.expand(len(x.stack), *place.shape))
    return Series(values if keepdim else values.squeeze(stack_axis(axis))), index


@rule(aten.sort)
def _sort(terms: int, x: Series, dim: int = -1, descending: bool = False, **stable: Any) -> Any:
    index = x.stack[0].sort(dim=dim, descending=descending, **stable).indices
    return _picked(x, index, dim)


@rule(aten.median)
def _median(terms: int, x: Series, axis: int | None = None, keepdim: bool = False) -> Any:
    if axis is None:
        return _median(terms, Series(x.stack.flatten(1)), 0)[0]
    return _picked(x, x.stack[0].median(axis, keepdim).indices, axis, keepdim)


@rule(aten.topk)
def _topk(terms: int, x: Series, k: int, axis: int = -1, *flags: bool) -> Any:
    return _picked(x, x.stack[0].topk(k, axis, *flags).indices, axis)


def _pooled(operation: Any, spatial: int) -> Rule:
    """Max-pooling whose second result is the flat index of the largest entry in its plane."""

    def act(terms: int, x: Series, *settings: Any) -> tuple[Series, Tensor]:
        values, index = operation(x.stack[0], *settings)
        place = index.flatten(-spatial)
        rest = [u.flatten(-spatial).gather(-1, place).reshape(index.shape) for u in x.stack[1:]]
        return Series(torch.stack([values, *rest])), index

    return act


for _operation, _spatial in {
    aten.max_pool2d_with_indices: 2,
    aten.max_pool3d_with_indices: 3,
    aten.adaptive_max_pool2d: 2,
    aten.adaptive_max_pool3d: 3,
}.items():
    rule(_operation)(_pooled(_operation, _spatial))


def _locally_constant(operation: Any) -> Rule:
    """A result that does not change within the piece: a comparison, an index, a sign."""

    def act(terms: int, *args: Any, **kwargs: Any) -> Tensor:
        values = [arg.stack[0] if isinstance(arg, Series) else arg for arg in args]
        return operation(*values, **kwargs)

    return act


for _operation in (
    aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.isnan, aten.isinf,
    aten.argmax, aten.argmin, aten.sign, aten.round, aten.floor, aten.ceil,
    aten.trunc, aten.logical_not, aten.logical_and, aten.logical_or, aten.any, aten.all,
):  # fmt: skip
    rule(_operation)(_locally_constant(_operation))
