"""How each elementary operation acts on power series: the rules that `theory.series` applies.

Linear operations act on all coefficients in one call. Products of two series, quotients and
elementary functions use the recurrences of `theory.recurrences`. Piecewise affine operations (ReLU,
max-pooling) act as the piece that the constant term lies on, with the conventions of automatic
differentiation where it lies on two.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from theory import recurrences
from theory.errors import InputError
from theory.series import Rule, Series, aten

Number = int | float
Operand = Tensor | Number
RULES: dict[Any, Rule] = {}


def _rule(*operations: Any) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def _stack(operand: Tensor) -> Tensor:
    """The coefficients; a constant has one."""
    return operand.stack if isinstance(operand, Series) else operand[None]


def _stacks(*operands: Operand) -> list[Tensor]:
    """The coefficients of each; numbers take the type of the tensors beside them."""
    like = next(operand for operand in operands if isinstance(operand, Tensor))
    return [
        _stack(operand)
        if isinstance(operand, Tensor)
        else torch.tensor([operand], dtype=like.dtype, device=like.device)
        for operand in operands
    ]


def _axis(axis: int) -> int:
    """An axis of the series as one of its stack."""
    return axis if axis < 0 else axis + 1


def _axes(axes: Sequence[int] | int | None, ndim: int) -> tuple[int, ...]:
    if axes is None or (isinstance(axes, Sequence) and not axes):
        return tuple(range(1, ndim + 1))
    return tuple(map(_axis, [axes] if isinstance(axes, int) else axes))


def _lifted(stack: Tensor, ndim: int) -> Tensor:
    """With axes of length one after the first, so that each coefficient has `ndim` axes."""
    return stack.reshape(len(stack), *(1,) * (ndim + 1 - stack.ndim), *stack.shape[1:])


def _matched(*operands: Operand) -> list[Tensor]:
    stacks = _stacks(*operands)
    ndim = max(stack.ndim for stack in stacks) - 1
    return [_lifted(stack, ndim) for stack in stacks]


def _constant(stack: Tensor) -> bool:
    return len(stack) == 1


# Linear operations.


def _view(act: Callable[..., Tensor]) -> Callable:
    return lambda terms, x, *args, **kwargs: Series(act(x.stack, *args, **kwargs))


for _operation, _act in {
    aten.view: lambda u, size: u.reshape(len(u), *size),
    aten._unsafe_view: lambda u, size: u.reshape(len(u), *size),
    aten.expand: lambda u, size, implicit=False: _lifted(u, len(size)).expand(len(u), *size),
    aten.permute: lambda u, axes: u.permute(0, *map(_axis, (a % (u.ndim - 1) for a in axes))),
    aten.transpose: lambda u, a, b: u.transpose(_axis(a), _axis(b)),
    aten.t: lambda u: u.transpose(1, 2) if u.ndim == 3 else u,
    aten.unsqueeze: lambda u, axis: u.unsqueeze(_axis(axis)),
    aten.slice: lambda u, axis=0, start=None, end=None, step=1: u[
        (slice(None),) * _axis(axis % (u.ndim - 1)) + (slice(start, end, step),)
    ],
    aten.select: lambda u, axis, index: u.select(_axis(axis), index),
    aten.diagonal: lambda u, offset=0, a=0, b=1: u.diagonal(offset, _axis(a), _axis(b)),
    aten.unfold: lambda u, axis, size, step: u.unfold(_axis(axis), size, step),
    aten.alias: lambda u: u.view_as(u),
    aten.detach: lambda u: u.view_as(u),
    aten.neg: lambda u: -u,
    aten.clone: lambda u, memory_format=None: u.contiguous() if u.stride(0) == 0 else u.clone(),
    aten._to_copy: lambda u, *, dtype=None, device=None, **kwargs: u.to(device, dtype, copy=True),
}.items():
    _rule(_operation)(_view(_act))


@_rule(aten.squeeze)
def _squeeze(terms: int, x: Series, axes: Any = None) -> Series:
    ndim = x.ndim
    chosen = range(ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    drop = {axis % ndim for axis in chosen if ndim and x.shape[axis] == 1}
    kept = [size for axis, size in enumerate(x.shape) if axis not in drop]
    return Series(x.stack.reshape(len(x.stack), *kept))


@_rule(aten.split, aten.split_with_sizes, aten.unsafe_split, aten.unsafe_split_with_sizes)
def _split(terms: int, x: Series, sizes: Any, axis: int = 0) -> list[Series]:
    return [Series(part) for part in x.stack.split(sizes, _axis(axis))]


@_rule(aten.unbind)
def _unbind(terms: int, x: Series, axis: int = 0) -> list[Series]:
    return [Series(part) for part in x.stack.unbind(_axis(axis))]


@_rule(aten.cat)
def _cat(terms: int, parts: Sequence[Tensor], axis: int = 0) -> Series:
    stacks = [_stack(part) for part in parts]
    longest = max(map(len, stacks))
    return Series(torch.cat([_padded(stack, longest) for stack in stacks], _axis(axis)))


@_rule(aten.stack)
def _stack_tensors(terms: int, parts: Sequence[Tensor], axis: int = 0) -> Series:
    stacks = [_stack(part) for part in parts]
    longest = max(map(len, stacks))
    return Series(torch.stack([_padded(stack, longest) for stack in stacks], _axis(axis)))


def _padded(stack: Tensor, terms: int) -> Tensor:
    """With zeros appended up to `terms` coefficients."""
    if len(stack) == terms:
        return stack
    return torch.cat([stack, stack.new_zeros(terms - len(stack), *stack.shape[1:])])


def _one_by_one(operation: Any) -> Callable:
    """A linear operation without a batched form here, taken coefficient by coefficient."""

    def act(terms: int, x: Tensor, *args: Any, **kwargs: Any) -> Series:
        if any(isinstance(arg, Series) for arg in (*args, *kwargs.values())) or not isinstance(
            x, Series
        ):
            raise InputError(
                f"{operation.__name__} takes an index or a weight that depends on the input: it "
                "has no rule for Taylor series; use engine='nested' up to order 3"
            )
        return Series(torch.stack([operation(u, *args, **kwargs) for u in x.stack]))

    return act


for _operation in (
    "_adaptive_avg_pool2d _adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d bilinear col2im "
    "cumsum embedding flip gather im2col index index_select "
    "reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d "
    "replication_pad2d replication_pad3d roll tril triu trace upsample_bicubic2d "
    "upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d "
    "upsample_trilinear3d pixel_shuffle pixel_unshuffle _fft_r2c"
).split():
    if hasattr(aten, _operation):
        _rule(getattr(aten, _operation))(_one_by_one(getattr(aten, _operation)))


@_rule(aten.constant_pad_nd)
def _pad(terms: int, x: Series, widths: Sequence[int], value: Number = 0) -> Series:
    padded = aten.constant_pad_nd(x.stack, widths, 0.0)
    if value:
        outside = ~aten.constant_pad_nd(torch.ones_like(x.stack[0], dtype=torch.bool), widths, 0)
        padded[0].masked_fill_(outside, value)
    return Series(padded)


@_rule(aten.sum)
def _sum(
    terms: int, x: Series, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Series:
    return Series(x.stack.sum(_axes(axes, x.ndim), keepdim, dtype=dtype) if x.ndim else x.stack)


@_rule(aten.mean)
def _mean(
    terms: int, x: Series, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Series:
    return Series(x.stack.mean(_axes(axes, x.ndim), keepdim, dtype=dtype) if x.ndim else x.stack)


@_rule(aten.add)
def _add(terms: int, x: Operand, y: Operand, alpha: Number = 1) -> Series:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):  # a number, for the constant term
        series, number = (x, alpha * y) if isinstance(x, Tensor) else (y, x)  # type: ignore[operator]
        stack = (series if series is x else alpha * series).stack.clone()  # type: ignore[union-attr, operator]
        stack[0] += number
        return Series(stack)
    u, v = _matched(x, y)
    if len(u) == len(v):
        return Series(torch.add(u, v, alpha=alpha))
    shape = torch.broadcast_shapes(u.shape[1:], v.shape[1:])
    both = min(len(u), len(v))
    out = u.new_empty(max(len(u), len(v)), *shape, dtype=torch.result_type(u, v))
    torch.add(u[:both], v[:both], alpha=alpha, out=out[:both])
    out[both:] = u[both:] if len(u) > both else alpha * v[both:]
    return Series(out)


@_rule(aten.sub)
def _sub(terms: int, x: Operand, y: Operand, alpha: Number = 1) -> Series:
    return _add(terms, x, y, alpha=-alpha)


@_rule(aten.rsub)
def _rsub(terms: int, x: Operand, y: Operand, alpha: Number = 1) -> Series:
    return _add(terms, y, x, alpha=-alpha)


# Products and quotients.


def _times(u: Tensor, v: Tensor, terms: int) -> Tensor:
    """The product of two stacks of matching rank."""
    if _constant(u) or _constant(v):
        return u * v
    length = min(len(u) + len(v) - 1, terms)
    if u is v:
        return recurrences.apply(recurrences.square, length, u)
    if u.shape[1:] == v.shape[1:]:
        return recurrences.apply(recurrences.product, length, u, v)
    shape = torch.broadcast_shapes(u.shape[1:], v.shape[1:])
    out = u.new_empty(length, *shape)
    recurrences.product(u, v, out)
    return out


def _over(u: Tensor, v: Tensor, terms: int) -> Tensor:
    if _constant(v):
        return u / v
    if u.shape[1:] == v.shape[1:]:
        return recurrences.apply(recurrences.quotient, terms, u, v)
    out = u.new_empty(terms, *torch.broadcast_shapes(u.shape[1:], v.shape[1:]))
    recurrences.quotient(u, v, out)
    return out


@_rule(aten.mul)
def _mul(terms: int, x: Operand, y: Operand) -> Series:
    if x is y:
        return _square(terms, x)  # type: ignore[arg-type]
    return Series(_times(*_matched(x, y), terms))


@_rule(aten.div)
def _div(terms: int, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Series:
    if rounding_mode is not None:
        raise InputError("a rounding division has no Taylor series: replace it in the model")
    return Series(_over(*_matched(x, y), terms))


@_rule(aten.addcmul)
def _addcmul(terms: int, x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Series:
    return _add(terms, x, Series(_times(*_matched(a, b), terms)), alpha=value)


@_rule(aten.addcdiv)
def _addcdiv(terms: int, x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Series:
    return _add(terms, x, Series(_over(*_matched(a, b), terms)), alpha=value)


@_rule(aten.lerp)
def _lerp(terms: int, x: Tensor, y: Tensor, weight: Operand) -> Series:
    return _add(terms, x, _mul(terms, _sub(terms, y, x), weight))


@_rule(aten.square)
def _square(terms: int, x: Series) -> Series:
    return Series(_times(x.stack, x.stack, terms))


def _matmul(u: Tensor, v: Tensor, terms: int) -> Tensor:
    """Σ_j u_j v_{k−j} of stacks of matrices: one product for each k, over all j at once."""
    if _constant(v) and v.ndim == 3:
        return (u.reshape(-1, u.shape[-1]) @ v[0]).reshape(len(u), -1, v.shape[-1])
    if _constant(u) or _constant(v):
        return torch.matmul(u, v)
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


@_rule(aten.mm, aten.bmm)
def _mm(terms: int, x: Tensor, y: Tensor) -> Series:
    return Series(_matmul(_stack(x), _stack(y), terms))


@_rule(aten.mv, aten.dot)
def _mv(terms: int, x: Tensor, y: Tensor) -> Series:
    u, v = _stack(x), _stack(y)[..., None]
    u = u[:, None] if x.ndim == 1 else u
    product = _matmul(u, v, terms)
    return Series(product.reshape(len(product), *x.shape[:-1]))


@_rule(aten.addmm, aten.baddbmm, aten.addmv)
def _addmm(
    terms: int, bias: Tensor, x: Tensor, y: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Series:
    product = (_mv if y.ndim == 1 else _mm)(terms, x, y)
    if alpha != 1:
        product.stack.mul_(alpha)
    if beta == 0:
        return product
    if isinstance(bias, Series):
        return _add(terms, product, bias, alpha=beta)
    product.stack[0].add_(bias, alpha=beta)
    return product


@_rule(aten.convolution)
def _convolution(
    terms: int, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any
) -> Series:
    if isinstance(weight, Series) or isinstance(bias, Series) or not isinstance(x, Series):
        raise InputError(
            "a convolution whose weights depend on the input has no rule for Taylor series: use "
            "engine='nested' up to order 3"
        )
    out = aten.convolution(x.stack.flatten(0, 1), weight, None, *settings)
    out = out.unflatten(0, x.stack.shape[:2])
    if bias is not None:
        out[0].add_(bias.reshape(-1, *(1,) * (x.ndim - 2)))
    return Series(out)


# Normalisation.


@_rule(
    aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm,
    aten._batch_norm_with_update, aten.miopen_batch_norm,
)  # fmt: skip
def _batch_norm(
    terms: int, x: Series, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    variance: Tensor | None, training: bool, momentum: float, eps: float,
) -> tuple[Series, Tensor, Tensor]:  # fmt: skip
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    if training:
        if len(x) > 1 and terms > 2:  # one example alone is instance norm, which couples nothing
            raise InputError(
                "Taylor terms above first order through batch norm with batch statistics are "
                "refused: they couple the examples, so that no example has a series of its own "
                "(Theorem 1 needs one fixed function); use batch_norm='eval' or order 1"
            )
        out = _normalized(x.stack, (1, *range(3, x.stack.ndim)), eps, terms)
        return _affine(out, weight, bias, per_channel), out.new_empty(0), out.new_empty(0)
    if mean is None or variance is None:
        raise InputError("batch norm in evaluation mode lacks running statistics: train it first")
    scale = (variance + eps).rsqrt()
    shift = -mean * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    shift = shift if bias is None else shift + bias
    out = x.stack * scale.reshape(1, *per_channel)
    out[0].add_(shift.reshape(per_channel))
    return Series(out), scale.new_empty(0), scale.new_empty(0)


@_rule(aten._native_batch_norm_legit_no_training)
def _batch_norm_evaluated(
    terms: int, x: Series, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    variance: Tensor, momentum: float, eps: float,
) -> tuple[Series, Tensor, Tensor]:  # fmt: skip
    return _batch_norm(terms, x, weight, bias, mean, variance, False, momentum, eps)


@_rule(aten.native_layer_norm)
def _layer_norm(
    terms: int, x: Series, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> tuple[Series, Tensor, Tensor]:  # fmt: skip
    out = _normalized(x.stack, tuple(range(-len(shape), 0)), eps, terms)
    result = _affine(out, weight, bias, (1,) * (x.ndim - len(shape)) + tuple(shape))
    return result, out.new_empty(0), out.new_empty(0)


@_rule(aten.native_group_norm)
def _group_norm(
    terms: int, x: Series, weight: Tensor | None, bias: Tensor | None, batch: int, channels: int,
    area: int, groups: int, eps: float,
) -> tuple[Series, Tensor, Tensor]:  # fmt: skip
    grouped = x.stack.reshape(len(x.stack), batch, groups, -1)
    out = _normalized(grouped, (-1,), eps, terms).reshape(-1, *x.shape)
    result = _affine(out, weight, bias, (1, -1, *(1,) * (x.ndim - 2)))
    return result, out.new_empty(0), out.new_empty(0)


def _normalized(u: Tensor, axes: tuple[int, ...], eps: float, terms: int) -> Tensor:
    """(u − mean) / √(variance + ε) over the given axes of the stack."""
    centred = u - u.mean(axes, keepdim=True)
    variance = _times(centred, centred, terms).mean(axes, keepdim=True)
    variance[0] += eps
    length = 1 if _constant(variance) else terms
    return _times(centred, recurrences.apply(recurrences.power, length, variance, exponent=-0.5), terms)


def _affine(
    u: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Series:
    out = u if weight is None else u * weight.reshape(1, *shape)
    if bias is not None:
        out[0].add_(bias.reshape(shape))
    return Series(out)


@_rule(aten.var)
def _var(
    terms: int, x: Series, axes: Any = None, *args: Any, correction: Number | None = 1,
    keepdim: bool = False,
) -> Series:  # fmt: skip
    where = _axes(axes, x.ndim)
    centred = x.stack - x.stack.mean(where, keepdim=True)
    count = math.prod(x.stack.shape[axis] for axis in where)
    squares = _times(centred, centred, terms).sum(where, keepdim)
    return Series(squares / (count - (1 if correction is None else correction)))


@_rule(aten.std)
def _std(terms: int, *args: Any, **kwargs: Any) -> Series:
    return _unary(recurrences.sqrt)(terms, _var(terms, *args, **kwargs))


@_rule(aten.linalg_vector_norm)
def _vector_norm(
    terms: int, x: Series, order: Number = 2, axes: Any = None, keepdim: bool = False, **kwargs: Any
) -> Series:
    if order == 1:
        return _sum(terms, _abs(terms, x), axes, keepdim)
    if order != 2:
        raise InputError(f"a vector norm of order {order} has no rule for Taylor series: use 1 or 2")
    return _unary(recurrences.sqrt)(terms, _sum(terms, _square(terms, x), axes, keepdim))


# Elementary functions.


def _unary(rule: recurrences.Rule) -> Callable[..., Series]:
    def act(terms: int, x: Series, **settings: float) -> Series:
        length = 1 if _constant(x.stack) else terms
        return Series(recurrences.apply(rule, length, x.stack, **settings))

    return act


for _name in "exp expm1 log log1p sqrt sin cos tanh sigmoid silu mish erf".split():
    _rule(getattr(aten, _name))(_unary(getattr(recurrences, _name)))


@_rule(aten.gelu)
def _gelu(terms: int, x: Series, *, approximate: str = "none") -> Series:
    rule = recurrences.gelu if approximate == "none" else recurrences.gelu_tanh
    return _unary(rule)(terms, x)


@_rule(aten.rsqrt)
def _rsqrt(terms: int, x: Series) -> Series:
    return _unary(recurrences.power)(terms, x, exponent=-0.5)


@_rule(aten.reciprocal)
def _reciprocal(terms: int, x: Series) -> Series:
    return _unary(recurrences.power)(terms, x, exponent=-1.0)


@_rule(aten.pow)
def _pow(terms: int, x: Operand, exponent: Operand) -> Series:
    if not isinstance(x, Tensor):
        return _unary(recurrences.exp)(terms, _mul(terms, exponent, math.log(x)))
    if isinstance(exponent, Tensor):
        return _unary(recurrences.exp)(
            terms, _mul(terms, exponent, _unary(recurrences.log)(terms, _as_series(x)))
        )
    if exponent < 0 or exponent != int(exponent):
        return _unary(recurrences.power)(terms, x, exponent=float(exponent))
    # Non-negative whole powers are products, which are right at zero too.
    result = torch.ones_like(x.stack[:1])
    base, rest = x.stack, int(exponent)
    while rest:
        result = _times(result, base, terms) if rest % 2 else result
        rest //= 2
        base = _times(base, base, terms) if rest else base
    return Series(result)


def _as_series(x: Tensor) -> Series:
    return x if isinstance(x, Series) else Series(x[None])


@_rule(aten.softplus)
def _softplus(terms: int, x: Series, beta: Number = 1, threshold: Number = 20) -> Series:
    u = x.stack if beta == 1 else x.stack * beta
    out = _unary(recurrences.softplus)(terms, Series(u)).stack
    linear = u[0] > threshold  # there PyTorch's softplus is the identity
    if bool(linear.any()):
        out = torch.where(linear, _padded(u, len(out)), out)
    return Series(out if beta == 1 else out / beta)


@_rule(aten.log_sigmoid_forward)
def _log_sigmoid(terms: int, x: Series) -> tuple[Series, Tensor]:
    out = _unary(recurrences.softplus)(terms, Series(-x.stack)).stack
    return Series(out.neg_()), out.new_empty(0)


@_rule(aten.log_sigmoid)
def _log_sigmoid_alone(terms: int, x: Series) -> Series:
    return _log_sigmoid(terms, x)[0]


@_rule(aten.logaddexp)
def _logaddexp(terms: int, x: Tensor, y: Tensor) -> Series:
    u, v = _matched(x, y)
    first = u[0] >= v[0]
    larger = _where(terms, first, Series(u), Series(v))
    difference = _sub(terms, _where(terms, first, Series(v), Series(u)), larger)
    return _add(terms, larger, _unary(recurrences.softplus)(terms, difference))


@_rule(aten.elu)
def _elu(
    terms: int, x: Series, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1
) -> Series:
    u = x.stack
    # The other piece is capped so that it cannot overflow where it is not used.
    below = torch.cat([u[:1].clamp(max=0), u[1:]]) * input_scale
    curve = _unary(recurrences.expm1)(terms, Series(below)).stack * (alpha * scale)
    return Series(torch.where(u[0] > 0, _padded(u * scale, len(curve)), curve))


@_rule(aten._softmax, aten._safe_softmax)
def _softmax(terms: int, x: Series, axis: int, *dtype: Any) -> Series:
    powers, total = _shifted_exponentials(terms, x, (_axis(axis),))[:2]
    # A row that is masked out entirely has no total: it is zero in `_safe_softmax`.
    total[0].masked_fill_(total[0] == 0, 1.0)
    return Series(_over(powers, total, 1 if _constant(powers) else terms))


@_rule(aten._log_softmax)
def _log_softmax(terms: int, x: Series, axis: int, *dtype: Any) -> Series:
    _, total, shifted = _shifted_exponentials(terms, x, (_axis(axis),))
    return _sub(terms, Series(shifted), _unary(recurrences.log)(terms, Series(total)))


@_rule(aten.logsumexp)
def _logsumexp(terms: int, x: Series, axes: Any, keepdim: bool = False) -> Series:
    where = _axes(axes, x.ndim)
    _, total, shifted = _shifted_exponentials(terms, x, where)
    out = _unary(recurrences.log)(terms, Series(total)).stack
    largest = x.stack[0].amax(tuple(a if a < 0 else a - 1 for a in where), keepdim=True)
    out[0].add_(largest.masked_fill(largest.isinf(), 0.0))
    return Series(out if keepdim else _without(out, where))


def _without(stack: Tensor, axes: Sequence[int]) -> Tensor:
    drop = {axis % stack.ndim for axis in axes}
    return stack.reshape([size for axis, size in enumerate(stack.shape) if axis not in drop])


def _shifted_exponentials(
    terms: int, x: Series, axes: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(u − m), its sum over the axes and u − m, where m is the largest constant term."""
    largest = x.stack[:1].amax(axes, keepdim=True)
    shifted = x.stack.clone()
    shifted[:1] -= largest.masked_fill(largest.isinf(), 0.0)
    powers = _unary(recurrences.exp)(terms, Series(shifted)).stack
    return powers, powers.sum(axes, keepdim=True), shifted


# Piecewise operations: the piece of the constant term.


@_rule(aten.relu)
def _relu(terms: int, x: Series) -> Series:
    u = x.stack
    out = torch.empty_like(u)
    torch.clamp(u[0], min=0, out=out[0])
    for k in range(1, len(u)):
        aten.threshold_backward.grad_input(u[k], u[0], 0, grad_input=out[k])
    return Series(out)


def _piecewise(operation: Any, backward: Any, *extra: Any) -> Callable:
    """An operation whose slope PyTorch gives as a backward of the same settings."""

    def act(terms: int, x: Series, *settings: Any) -> Series:
        u = x.stack
        rest = [backward(v, u[0], *settings, *extra)[None] for v in u[1:]]
        return Series(torch.cat([operation(u[0], *settings)[None], *rest]))

    return act


_rule(aten.threshold)(
    lambda terms, x, threshold, value: Series(
        torch.cat(
            [
                aten.threshold(x.stack[:1], threshold, value),
                *(aten.threshold_backward(v, x.stack[0], threshold)[None] for v in x.stack[1:]),
            ]
        )
    )
)
_rule(aten.hardshrink)(
    lambda terms, x, limit=0.5: _piecewise(aten.hardshrink, aten.hardshrink_backward)(terms, x, limit)
)
_rule(aten.softshrink)(
    lambda terms, x, limit=0.5: _piecewise(aten.softshrink, aten.softshrink_backward)(terms, x, limit)
)
_rule(aten.hardtanh)(
    lambda terms, x, low=-1, high=1: _piecewise(aten.hardtanh, aten.hardtanh_backward)(
        terms, x, low, high
    )
)
_rule(aten.relu6)(
    lambda terms, x: _piecewise(aten.hardtanh, aten.hardtanh_backward)(terms, x, 0, 6)
)
_rule(aten.leaky_relu)(
    lambda terms, x, slope=0.01: _piecewise(aten.leaky_relu, aten.leaky_relu_backward, False)(
        terms, x, slope
    )
)


@_rule(aten._prelu_kernel)
def _prelu(terms: int, x: Series, weight: Tensor) -> Series:
    return Series(torch.where(x.stack[0] > 0, x.stack, x.stack * weight))


@_rule(aten.abs)
def _abs(terms: int, x: Series) -> Series:
    return Series(x.stack * x.stack[0].sign())


@_rule(aten.hardsigmoid)
def _hardsigmoid(terms: int, x: Series) -> Series:
    shifted = x.stack / 6
    shifted[0] += 0.5
    return Series(_piecewise(aten.hardtanh, aten.hardtanh_backward)(terms, Series(shifted), 0, 1).stack)


@_rule(aten.hardswish)
def _hardswish(terms: int, x: Series) -> Series:
    return _mul(terms, x, _hardsigmoid(terms, x))


@_rule(aten.clamp)
def _clamp(terms: int, x: Series, low: Any = None, high: Any = None) -> Series:
    if isinstance(low, Series) or isinstance(high, Series):
        raise InputError("clamp with limits that depend on the input has no rule: use maximum")
    u = x.stack
    value = torch.clamp(u[0], low, high)
    inside = torch.ones_like(u[0], dtype=torch.bool)
    inside = inside if low is None else inside & (u[0] >= low)
    inside = inside if high is None else inside & (u[0] <= high)
    return Series(torch.cat([value[None], u[1:] * inside]))


_rule(aten.clamp_min)(lambda terms, x, low: _clamp(terms, x, low))
_rule(aten.clamp_max)(lambda terms, x, high: _clamp(terms, x, None, high))


@_rule(aten.where)
def _where(terms: int, condition: Tensor, x: Operand, y: Operand) -> Series:
    u, v = _stacks(x, y)
    longest = max(len(u), len(v))
    ndim = max(condition.ndim, u.ndim - 1, v.ndim - 1)
    return Series(
        torch.where(
            condition, _padded(_lifted(u, ndim), longest), _padded(_lifted(v, ndim), longest)
        )
    )


@_rule(aten.masked_fill)
def _masked_fill(terms: int, x: Tensor, mask: Tensor, value: Operand) -> Series:
    return _where(terms, mask, value, x)


@_rule(aten.maximum)
def _maximum(terms: int, x: Tensor, y: Tensor) -> Series:
    u, v = _matched(x, y)
    larger = _where(terms, u[0] > v[0], Series(u), Series(v))
    middle = _mul(terms, _add(terms, Series(u), Series(v)), 0.5)
    return _where(terms, u[0] == v[0], middle, larger)


@_rule(aten.minimum)
def _minimum(terms: int, x: Tensor, y: Tensor) -> Series:
    return Series(-_maximum(terms, Series(-_stack(x)), Series(-_stack(y))).stack)


@_rule(aten.amax, aten.max)
def _amax(terms: int, x: Series, axes: Any = None, keepdim: bool = False) -> Any:
    if isinstance(axes, Series) or (isinstance(axes, Tensor)):
        return _maximum(terms, x, axes)
    if isinstance(axes, int):  # max over one axis, which also gives the index
        return _picked(x, torch.max(x.stack[0], axes, keepdim).indices, axes, keepdim)
    where = _axes(axes, x.ndim)
    u = x.stack
    # Ties share, as in automatic differentiation.
    largest = u[:1].amax(where, keepdim=True)
    ties = (u[:1] == largest).to(u.dtype)
    rest = (u[1:] * ties).sum(where, keepdim=True) / ties.sum(where, keepdim=True)
    out = torch.cat([largest, rest])
    return Series(out if keepdim else _without(out, where))


@_rule(aten.amin, aten.min)
def _amin(terms: int, x: Series, axes: Any = None, keepdim: bool = False) -> Any:
    if isinstance(axes, Tensor):
        return _minimum(terms, x, axes)
    result = _amax(terms, Series(-x.stack), axes, keepdim)
    if isinstance(result, Series):
        return Series(-result.stack)
    return Series(-result[0].stack), result[1]


def _picked(x: Series, index: Tensor, axis: int, keepdim: bool = True) -> tuple[Series, Tensor]:
    index = index if keepdim else index.unsqueeze(axis)
    values = x.stack.gather(_axis(axis), index.expand(len(x.stack), *index.shape))
    if not keepdim:
        values, index = values.squeeze(_axis(axis)), index.squeeze(axis)
    return Series(values), index


@_rule(aten.sort)
def _sort(terms: int, x: Series, axis: int = -1, descending: bool = False) -> Any:
    return _picked(x, x.stack[0].sort(axis, descending).indices, axis)


@_rule(aten.topk)
def _topk(terms: int, x: Series, k: int, axis: int = -1, *flags: bool) -> Any:
    return _picked(x, x.stack[0].topk(k, axis, *flags).indices, axis)


def _pooled(operation: Any, spatial: int) -> Callable:
    """Max-pooling whose second result is the flat index of the largest entry in its plane."""

    def act(terms: int, x: Series, *settings: Any) -> tuple[Series, Tensor]:
        values, index = operation(x.stack[0], *settings)
        rest = [
            u.flatten(-spatial).gather(-1, index.flatten(-spatial)).reshape(index.shape)
            for u in x.stack[1:]
        ]
        return Series(torch.stack([values, *rest])), index

    return act


for _operation, _spatial in {
    aten.max_pool2d_with_indices: 2,
    aten.max_pool3d_with_indices: 3,
    aten.adaptive_max_pool2d: 2,
    aten.adaptive_max_pool3d: 3,
}.items():
    _rule(_operation)(_pooled(_operation, _spatial))


# Operations whose result is constant on the piece.


def _locally_constant(operation: Any) -> Callable:
    def act(terms: int, *args: Any, **kwargs: Any) -> Tensor:
        values = [arg.stack[0] if isinstance(arg, Series) else arg for arg in args]
        return operation(*values, **kwargs)

    return act


for _name in (
    "gt ge lt le eq ne isnan isinf isfinite argmax argmin argsort sign round floor ceil trunc "
    "logical_not logical_and logical_or any all"
).split():
    _rule(getattr(aten, _name))(_locally_constant(getattr(aten, _name)))
