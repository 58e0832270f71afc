"""Rules of operations with kinks: they first insert the vertices where their kinks lie."""

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from theory.curves.affine import affine
from theory.curves.tensor import (
    TOGETHER,
    called,
    curves_in,
    is_inplace,
    on_shapes,
    only_input,
    refuse,
    rule_for,
    wrapped,
)
from theory.curves.vertices import (
    ROUNDING,
    adaptive_windows,
    corners,
    crossings,
    pooling_windows,
)


@rule_for([F.rrelu])
def _random_relu(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"]:
        refuse(func, "is random in training mode")
    return _activation(func, args, kwargs)


@rule_for(
    "relu relu_ leaky_relu leaky_relu_ prelu abs abs_ absolute __abs__ relu6 hardtanh hardtanh_ "
    "hardsigmoid clamp clamp_ clip clip_ clamp_min clamp_max"
)
def _activation(func: Any, args: tuple, kwargs: dict) -> Any:
    """ReLU and its like: affine between given levels of each unit."""
    curves = only_input(func, args, kwargs)
    found = [
        (level, *crossings(curves.rows, curves.grid, level))
        for level in _levels(func, args, kwargs)
    ]
    grid = curves.grid.inserted(torch.cat([curves.grid.keys[:0], *(keys for _, keys, _ in found)]))
    rows = grid.interpolate(curves.rows, curves.grid).contiguous()
    flat = rows.view(len(rows), -1)
    for level, keys, unit in found:
        flat[grid.nearest(keys), unit] = level
    inside = called(func, rows, args, kwargs)
    target = curves if is_inplace(func, kwargs) else None
    return wrapped(func, inside, None, [curves], grid, target)


def _levels(func: Any, args: tuple, kwargs: dict) -> list[float]:
    """The values of z at which an activation has its kinks."""
    levels = _LEVELS.get(func.__name__.strip("_"), lambda *args, **kwargs: (0.0,))(*args, **kwargs)
    if any(isinstance(level, Tensor) for level in levels):
        refuse(func, "has bounds that are tensors, not numbers,")
    return [float(level) for level in levels if level is not None and math.isfinite(level)]


# Parameters carry the names and the order of the PyTorch functions.
_LEVELS: dict[str, Callable[..., tuple]] = {
    "relu6": lambda input, inplace=False: (0.0, 6.0),
    "hardsigmoid": lambda input, inplace=False: (-3.0, 3.0),
    "hardtanh": lambda input, min_val=-1.0, max_val=1.0, inplace=False: (min_val, max_val),
    "clamp": lambda input, min=None, max=None: (min, max),
    "clip": lambda input, min=None, max=None: (min, max),
    "clamp_min": lambda input, min: (min,),
    "clamp_max": lambda input, max: (max,),
}


@rule_for("maximum minimum max min amax amin")
def _extremum(func: Any, args: tuple, kwargs: dict) -> Any:
    """The larger, or the smaller, of two tensors; or of one along an axis."""
    if len(args) < 2 or not isinstance(args[1], Tensor):
        return _reduced_extremum(func, args, kwargs)
    difference = affine(torch.sub, args[:2], {})
    keys, _ = crossings(difference.rows, difference.grid, 0.0)
    grid = difference.grid.inserted(keys)
    for curves in curves_in(args):
        curves.move_to(grid)
    return affine(func, args, kwargs)


def _reduced_extremum(func: Any, args: tuple, kwargs: dict) -> Any:
    """Over axes, all of which are one window."""
    curves = only_input(func, args, kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("dim", ())
    axes = sorted({axis % curves.rows.ndim for axis in tree_flatten(given)[0]})
    if not axes or axes[0] == 0:
        refuse(func, TOGETHER)
    values = curves.rows.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
    values = values.reshape(len(values), -1, values.shape[-1])
    sign = -1 if "min" in func.__name__ else 1
    grid = curves.grid.inserted(corners(sign * values, curves.grid))
    inside = called(func, grid.interpolate(curves.rows, curves.grid), args, kwargs)
    if isinstance(inside, Tensor):
        return wrapped(func, inside, None, [curves], grid)
    # Which one is largest changes along the curve: there is no index to return.
    return _Extremum(wrapped(func, inside[0], None, [curves], grid), None)


_Extremum = namedtuple("_Extremum", ["values", "indices"])


@rule_for(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices"
)
def _max_pool(func: Any, args: tuple, kwargs: dict) -> Any:
    curves = only_input(func, args, kwargs)
    outside = on_shapes(func, args, kwargs)
    if not isinstance(outside, Tensor):
        refuse(func, "returns indices, which change along the curve,")
    sizes, outputs = curves.rows.shape[2:], outside.shape[2:]
    count = next(n for n in (1, 2, 3) if f"{n}d" in func.__name__)
    if len(sizes) != count:
        refuse(func, "got an input without a batch axis, or without channels,")
    if "adaptive" in func.__name__:
        windows = adaptive_windows(sizes, outputs)
    else:
        names = ("input", "kernel_size", "stride", "padding", "dilation")
        given = {"padding": 0, "dilation": 1, **dict(zip(names, args, strict=False)), **kwargs}
        given["stride"] = given.get("stride") or given["kernel_size"]
        windows = pooling_windows(sizes, outputs, *(_each(given[n], count) for n in names[1:]))
    values = curves.rows.flatten(2)[:, :, windows.to(curves.rows.device)].flatten(1, 2)
    grid = curves.grid.inserted(corners(values, curves.grid))
    inside = called(func, grid.interpolate(curves.rows, curves.grid), args, kwargs)
    # Many a kink loses the maximum: it need not be carried on.
    grid, inside = grid.straightened(inside, ROUNDING)
    return wrapped(func, inside, outside, [curves], grid)


def _each(number: int | Sequence[int], count: int) -> Sequence[int]:
    numbers = [number] if isinstance(number, int) else list(number)
    return numbers * count if len(numbers) == 1 else numbers
