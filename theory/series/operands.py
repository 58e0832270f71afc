"""What the rules share: their table, and stacks of coefficients brought into one form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from theory.series.mode import Rule, Series

Number = int | float
Operand = Tensor | Number
RULES: dict[Any, Rule] = {}


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Registers a function of (terms, *arguments) as the rule of these operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def stack_of(tensor: Tensor) -> Tensor:
    """The coefficients; a constant has one."""
    return tensor.stack if isinstance(tensor, Series) else tensor[None]


def stacks_of(x: Operand, y: Operand) -> tuple[Tensor, Tensor]:
    """The coefficients of both; a number takes the type of the tensor beside it."""

    def stack(operand: Operand, other: Operand) -> Tensor:
        if isinstance(operand, Tensor):
            return stack_of(operand)
        assert isinstance(other, Tensor)
        return torch.tensor([operand], dtype=other.dtype, device=other.device)

    return stack(x, y), stack(y, x)


def matched(x: Operand, y: Operand) -> tuple[Tensor, Tensor]:
    """The coefficients of both, with as many axes."""
    u, v = stacks_of(x, y)
    ndim = max(u.ndim, v.ndim) - 1
    return lifted(u, ndim), lifted(v, ndim)


def lifted(stack: Tensor, ndim: int) -> Tensor:
    """With axes of length one after the first, so that each coefficient has `ndim` axes."""
    return stack.reshape(len(stack), *(1,) * (ndim + 1 - stack.ndim), *stack.shape[1:])


def padded(stack: Tensor, terms: int) -> Tensor:
    """With zeros appended up to `terms` coefficients."""
    if len(stack) == terms:
        return stack
    return torch.cat([stack, stack.new_zeros(terms - len(stack), *stack.shape[1:])])


def stack_axis(axis: int) -> int:
    """An axis of the series as one of its stack."""
    return axis if axis < 0 else axis + 1


def stack_axes(axes: Sequence[int] | int | None, ndim: int) -> tuple[int, ...]:
    """Axes of the series, all if none is named, as negative axes of its stack."""
    if axes is None or (not isinstance(axes, int) and len(axes) == 0):
        return tuple(range(-ndim, 0))
    chosen = [axes] if isinstance(axes, int) else axes
    return tuple(axis if axis < 0 else axis - ndim for axis in chosen)


def without(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Drops axes of length one."""
    drop = {axis % tensor.ndim for axis in axes}
    return tensor.reshape([size for axis, size in enumerate(tensor.shape) if axis not in drop])
