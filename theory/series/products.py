"""Rules of products and quotients of two series, and of layers whose weights are constant."""

from typing import Any

import torch
from torch import Tensor

from theory.errors import InputError
from theory.series import recurrences
from theory.series.linear import add, sub
from theory.series.mode import NESTED_MOST, Series, aten
from theory.series.operands import Number, Operand, matched, rule, stack_axis, stack_of


def times(terms: int, u: Tensor, v: Tensor) -> Tensor:
    """The product of two stacks with as many axes."""
    if len(u) == 1 or len(v) == 1:
        return u * v
    if u is v:
        return recurrences.apply(recurrences.square, terms, u)
    return recurrences.apply(recurrences.product, terms, u, v)


def over(terms: int, u: Tensor, v: Tensor) -> Tensor:
    """The quotient of two stacks with as many axes."""
    return u / v if len(v) == 1 else recurrences.apply(recurrences.quotient, terms, u, v)


@rule(aten.mul)
def mul(terms: int, x: Operand, y: Operand) -> Series:
    """X y."""
    if x is y and isinstance(x, Series):
        return square(terms, x)
    return Series(times(terms, *matched(x, y)))


def square(terms: int, x: Series) -> Series:
    """x²."""
    return Series(times(terms, x.stack, x.stack))


@rule(aten.div)
def _div(terms: int, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Series:
    if rounding_mode is not None:
        raise InputError("a rounding division has no Taylor series: replace it in the model")
    return Series(over(terms, *matched(x, y)))


@rule(aten.addcmul)
def _addcmul(terms: int, x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Series:
    return add(terms, x, mul(terms, a, b), alpha=value)


@rule(aten.addcdiv)
def _addcdiv(terms: int, x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Series:
    return add(terms, x, _div(terms, a, b), alpha=value)


@rule(aten.lerp)
def _lerp(terms: int, x: Tensor, y: Tensor, weight: Operand) -> Series:
    return add(terms, x, mul(terms, sub(terms, y, x), weight))


@rule(aten.prod)
def _prod(
    terms: int, x: Series, axis: int | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Series:
    parts = x.stack.flatten(1).unbind(1) if axis is None else x.stack.unbind(stack_axis(axis))
    product = parts[0]
    for part in parts[1:]:
        product = times(terms, product, part)
    return Series(product.unsqueeze(stack_axis(axis)) if keepdim and axis is not None else product)


def _matmul(terms: int, u: Tensor, v: Tensor) -> Tensor:
    """Products of stacks of matrices."""
    if len(v) == 1 and v.ndim == 3:  # constant weights: one product over the rows of all
        return (u.reshape(-1, u.shape[-1]) @ v[0]).reshape(len(u), -1, v.shape[-1])
    if len(u) == 1 or len(v) == 1:
        return torch.matmul(u, v)
    # Σ_j u_j v_{k−j} is one product of [u_0 u_1 …] with [v_k; v_{k−1}; …].
    inner = u.shape[-1]
    rows = u.movedim(0, -2).flatten(-2)
    columns = v.flip(0).movedim(0, -3).flatten(-3, -2)
    products = []
    for k in range(min(len(u) + len(v) - 1, terms)):
        low, high = max(0, k - len(v) + 1), min(k, len(u) - 1) + 1
        shift = len(v) - 1 - k
        products.append(
            rows[..., low * inner : high * inner]
            @ columns[..., (low + shift) * inner : (high + shift) * inner, :]
        )
    return torch.stack(products)


@rule(aten.mm, aten.bmm)
def _mm(terms: int, x: Tensor, y: Tensor) -> Series:
    return Series(_matmul(terms, stack_of(x), stack_of(y)))


@rule(aten.mv, aten.dot)
def _mv(terms: int, x: Tensor, y: Tensor) -> Series:
    u = stack_of(x)
    product = _matmul(terms, u[:, None] if x.ndim == 1 else u, stack_of(y)[..., None])
    return Series(product.reshape(len(product), *x.shape[:-1]))


@rule(aten.addmm, aten.baddbmm, aten.addmv)
def _addmm(
    terms: int, bias: Tensor, x: Tensor, y: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Series:
    product = (_mv if y.ndim == 1 else _mm)(terms, x, y)
    if alpha != 1:
        product.stack.mul_(alpha)
    if isinstance(bias, Series):
        return add(terms, product, bias, alpha=beta)
    if beta:
        product.stack[0].add_(bias, alpha=beta)
    return product


@rule(aten.convolution)
def _convolution(
    terms: int, x: Series, weight: Tensor, bias: Tensor | None, *settings: Any
) -> Series:
    if isinstance(weight, Series) or isinstance(bias, Series):
        raise InputError(
            "a convolution whose weights depend on the input has no rule for Taylor series: take "
            f"the nested engine, up to order {NESTED_MOST}"
        )
    out = aten.convolution(x.stack.flatten(0, 1), weight, None, *settings)
    out = out.unflatten(0, x.stack.shape[:2])
    if bias is not None:
        out[0].add_(bias.reshape(-1, *(1,) * (x.ndim - 2)))
    return Series(out)
