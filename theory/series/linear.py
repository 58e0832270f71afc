"""Rules of linear operations: on all coefficients in one call where PyTorch can be told so."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from theory.series.mode import Rule, Series, aten
from theory.series.operands import (
    Number,
    Operand,
    lifted,
    matched,
    padded,
    rule,
    stack_axes,
    stack_axis,
    stack_of,
    without,
)


def _whole(act: Callable[..., Tensor]) -> Rule:
    return lambda terms, x, *args, **kwargs: Series(act(x.stack, *args, **kwargs))


def _permuted(u: Tensor, axes: Sequence[int]) -> Tensor:
    return u.permute(0, *(axis % (u.ndim - 1) + 1 for axis in axes))


def _sliced(
    u: Tensor, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    before = (slice(None),) * (axis % (u.ndim - 1) + 1)
    return u[(*before, slice(start, end, step))]


_SHAPES: dict[Any, Callable[..., Tensor]] = {
    aten.view: lambda u, size: u.reshape(len(u), *size),
    aten._unsafe_view: lambda u, size: u.reshape(len(u), *size),
    aten.expand: lambda u, size, implicit=False: lifted(u, len(size)).expand(len(u), *size),
    aten.permute: _permuted,
    aten.transpose: lambda u, a, b: u.transpose(stack_axis(a), stack_axis(b)),
    aten.t: lambda u: u.transpose(1, 2) if u.ndim == 3 else u,
    aten.unsqueeze: lambda u, axis: u.unsqueeze(stack_axis(axis)),
    aten.slice: _sliced,
    aten.select: lambda u, axis, index: u.select(stack_axis(axis), index),
    aten.diagonal: lambda u, offset=0, a=0, b=1: u.diagonal(offset, stack_axis(a), stack_axis(b)),
    aten.unfold: lambda u, axis, size, step: u.unfold(stack_axis(axis), size, step),
    aten.alias: lambda u: u.view_as(u),
    aten.detach: lambda u: u.view_as(u),
    aten.neg: lambda u: -u,
    aten.clone: lambda u, memory_format=None: u.clone(memory_format=torch.contiguous_format),
}
for _operation, _act in _SHAPES.items():
    rule(_operation)(_whole(_act))


def _one_by_one(operation: Any) -> Rule:
    """A linear operation without a batched form, taken coefficient by coefficient."""

    def act(terms: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        return Series(torch.stack([operation(u, *args, **kwargs) for u in x.stack]))

    return act


for _operation in (
    aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.avg_pool2d,
    aten.avg_pool3d, aten.col2im, aten.cumsum, aten.flip, aten.gather, aten.im2col, aten.index,
    aten.index_select, aten.pixel_shuffle, aten.pixel_unshuffle, aten.reflection_pad1d,
    aten.reflection_pad2d, aten.reflection_pad3d, aten.repeat, aten.replication_pad1d,
    aten.replication_pad2d, aten.replication_pad3d, aten.roll, aten.rot90, aten.trace, aten.tril,
    aten.triu, aten.upsample_bicubic2d, aten.upsample_bilinear2d, aten.upsample_linear1d,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_trilinear3d,
):  # fmt: skip
    rule(_operation)(_one_by_one(_operation))


@rule(aten._to_copy)
def _to_copy(
    terms: int, x: Series, *, dtype: torch.dtype | None = None, device: Any = None, **layout: Any
) -> Tensor:
    if dtype is not None and not dtype.is_floating_point:  # constant on the piece
        return x.stack[0].to(device, dtype)
    return Series(x.stack.to(device, dtype or x.dtype, copy=True))


@rule(aten.squeeze)
def _squeeze(terms: int, x: Series, axes: Any = None) -> Series:
    chosen = range(x.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    return Series(
        without(x.stack, [axis - x.ndim * (axis >= 0) for axis in chosen if x.shape[axis] == 1])
    )


@rule(aten.split, aten.split_with_sizes, aten.unsafe_split, aten.unsafe_split_with_sizes)
def _split(terms: int, x: Series, sizes: Any, axis: int = 0) -> list[Series]:
    return [Series(part) for part in x.stack.split(sizes, stack_axis(axis))]


@rule(aten.unbind)
def _unbind(terms: int, x: Series, axis: int = 0) -> list[Series]:
    return [Series(part) for part in x.stack.unbind(stack_axis(axis))]


def _of_one_length(parts: Sequence[Tensor]) -> list[Tensor]:
    longest = max(len(stack_of(part)) for part in parts)
    return [padded(stack_of(part), longest) for part in parts]


@rule(aten.cat)
def _cat(terms: int, parts: Sequence[Tensor], axis: int = 0) -> Series:
    return Series(torch.cat(_of_one_length(parts), stack_axis(axis)))


@rule(aten.stack)
def _stack(terms: int, parts: Sequence[Tensor], axis: int = 0) -> Series:
    return Series(torch.stack(_of_one_length(parts), stack_axis(axis)))


@rule(aten.copy)
def _copy(terms: int, target: Tensor, source: Tensor, non_blocking: bool = False) -> Series:
    stack = lifted(stack_of(source), target.ndim).expand(-1, *target.shape)
    return Series(stack.to(target.dtype, copy=True))


@rule(aten.fill)
def _fill(terms: int, target: Series, value: Operand) -> Series:
    if not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=target.dtype, device=target.device)
    return _copy(terms, target, value)


@rule(aten.zero)
def _zero(terms: int, target: Series) -> Series:
    return Series(torch.zeros_like(target.stack[:1]))


@rule(aten.constant_pad_nd)
def _pad(terms: int, x: Series, widths: Sequence[int], value: Number = 0) -> Series:
    rest = [aten.constant_pad_nd(u, widths, 0.0) for u in x.stack[1:]]
    return Series(torch.stack([aten.constant_pad_nd(x.stack[0], widths, value), *rest]))


@rule(aten.sum)
def sum_over(
    terms: int, x: Series, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Series:
    """Sum over the axes, all of them if none is named."""
    return Series(x.stack.sum(stack_axes(axes, x.ndim), keepdim, dtype=dtype))


@rule(aten.mean)
def mean_over(
    terms: int, x: Series, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Series:
    """Mean over the axes, all of them if none is named."""
    return Series(x.stack.mean(stack_axes(axes, x.ndim), keepdim, dtype=dtype))


@rule(aten.add)
def add(terms: int, x: Operand, y: Operand, alpha: Number = 1) -> Series:
    """x + alpha y; a constant adds to the constant term alone."""
    u, v = matched(x, y)
    if len(u) == len(v):
        return Series(torch.add(u, v, alpha=alpha))
    shape = torch.broadcast_shapes(u.shape[1:], v.shape[1:])
    out = u.new_empty(max(len(u), len(v)), *shape, dtype=torch.result_type(u, v))
    both = min(len(u), len(v))
    torch.add(u[:both], v[:both], alpha=alpha, out=out[:both])
    out[both:] = u[both:] if len(u) > both else alpha * v[both:]
    return Series(out)


@rule(aten.sub)
def sub(terms: int, x: Operand, y: Operand, alpha: Number = 1) -> Series:
    """X − alpha y."""
    return add(terms, x, y, alpha=-alpha)


@rule(aten.rsub)
def _rsub(terms: int, x: Operand, y: Operand, alpha: Number = 1) -> Series:
    return add(terms, y, x, alpha=-alpha)
