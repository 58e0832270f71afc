"""Rules of operations that are affine: they act on the vertices as they are."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from theory.curves.tensor import (
    TOGETHER,
    Curves,
    called,
    curves_in,
    is_inplace,
    named,
    on_shapes,
    only_input,
    properties,
    refuse,
    rule_for,
    wrapped,
)
from theory.curves.vertices import Grid

_SUMS = (
    "add add_ __add__ __radd__ __iadd__ sub sub_ subtract rsub __sub__ __rsub__ __isub__ "
    "cat concat concatenate stack where masked_fill"
)
_PRODUCTS = "mul mul_ multiply __mul__ __rmul__ __imul__"
_QUOTIENTS = "div div_ divide true_divide __truediv__ __itruediv__"
_ELEMENTWISE = named(f"{_SUMS} {_PRODUCTS} {_QUOTIENTS} maximum minimum max min")
_EXPANDS = named("expand expand_as")
_RESHAPES = _EXPANDS | named("view view_as reshape reshape_as")


@rule_for(properties("data mT"))
@rule_for(
    f"{_SUMS} neg neg_ negative __neg__ positive __pos__ clone contiguous detach double to view "
    "view_as reshape reshape_as expand expand_as flatten unflatten squeeze unsqueeze transpose "
    "swapaxes permute movedim select narrow chunk split tensor_split unbind index_select repeat "
    "tile sum mean pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d interpolate pixel_shuffle pixel_unshuffle channel_shuffle unfold fold"
)
def affine(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation that is affine in all its curves together, row by row."""
    inplace = is_inplace(func, kwargs)
    if inplace and not isinstance(args[0], Curves):
        refuse(func, "writes into a tensor that does not depend on the input")
    outside = on_shapes(func, args, kwargs)  # a fault of the network shows here as its own
    curves = curves_in((args, kwargs))
    grid = _put_on_one_grid(curves)

    def vertices(leaf: Any) -> Any:
        if isinstance(leaf, Curves):
            return leaf.rows.clone() if inplace and leaf is args[0] else leaf.rows
        if func in _ELEMENTWISE and isinstance(leaf, Tensor):
            has_row_an_example = leaf.ndim == curves[0].rows.ndim and len(leaf) == grid.segments
            return leaf.index_select(0, grid.segment) if has_row_an_example else leaf
        return leaf

    try:
        if func in _RESHAPES:
            shape = (len(grid.keys), *outside.shape[1:])
            rows = curves[0].rows
            inside = rows.expand(shape) if func in _EXPANDS else rows.reshape(shape)
        else:
            inside = func(*tree_map(vertices, args), **tree_map(vertices, kwargs))
    except RuntimeError:
        refuse(func, TOGETHER)
    return wrapped(func, inside, outside, curves, grid, args[0] if inplace else None)


@rule_for(f"{_PRODUCTS} matmul mm __matmul__ __rmatmul__ einsum tensordot")
def _product(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation that is affine in one factor: two of them must not be curves."""
    if len(curves_in((args, kwargs))) > 1:
        refuse(func, "multiplies two tensors that depend on the input")
    return affine(func, args, kwargs)


@rule_for(_QUOTIENTS)
def _quotient(func: Any, args: tuple, kwargs: dict) -> Any:
    if not isinstance(args[0], Curves):
        refuse(func, "has a divisor that depends on the input")
    if kwargs.get("rounding_mode") is not None:
        refuse(func, "rounds")
    return _product(func, args, kwargs)


@rule_for("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def _layer(func: Any, args: tuple, kwargs: dict) -> Any:
    """A linear layer or a convolution, whose input alone may be curves."""
    curves = only_input(func, args, kwargs)
    axes = {"1d": 3, "2d": 4, "3d": 5}.get(func.__name__[-2:])
    if curves.rows.ndim < 2 or axes not in (None, curves.rows.ndim):
        refuse(func, "got an input without a batch axis, or without channels,")
    inside = called(func, curves.rows, args, kwargs)
    return wrapped(func, inside, None, [curves], curves.grid)


# PyTorch hands on all arguments of these by name but the tensors; not so of their built-in twins.


@rule_for([F.batch_norm])
def _batch_norm(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"]:
        refuse(func, "normalises by the statistics of the batch")
    return _layer(func, args, kwargs)


@rule_for(
    [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout]
)
def _dropout(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"] and kwargs["p"] > 0:
        refuse(func, "is random in training mode")
    return args[0]


@rule_for("flip")
def _flip(func: Any, args: tuple, kwargs: dict) -> Any:
    axes = args[1:] or kwargs.get("dims", ())
    if any(axis % args[0].rows.ndim == 0 for axis in tree_flatten(axes)[0]):
        refuse(func, TOGETHER)
    return affine(func, args, kwargs)


@rule_for("__getitem__")
def _index(func: Any, args: tuple, kwargs: dict) -> Any:
    curves, index = args
    if not isinstance(curves, Curves) or curves_in(index):
        refuse(func, "looks up by what depends on the input")
    outside = curves.as_example()[index]
    try:
        inside = curves.rows[index]
    except IndexError:
        refuse(func, TOGETHER)
    return wrapped(func, inside, outside, [curves], curves.grid)


@rule_for("zeros_like ones_like full_like new_zeros new_ones new_full new_tensor")
def _constant(func: Any, args: tuple, kwargs: dict) -> Any:
    """Constants in the shape or the type of the examples: no curves."""
    return func(only_input(func, args, kwargs).as_example(), *args[1:], **kwargs)


def _put_on_one_grid(curves: Sequence[Curves]) -> Grid:
    """Interpolates all of them onto the union of their vertices."""
    grid = curves[0].grid
    for other in curves[1:]:
        if other.grid is not grid:
            grid = grid.inserted(other.grid.keys)
    for one in curves:
        one.move_to(grid)
    return grid
