"""Piecewise affine curves carried through a network: the engine of `theory.segments`.

On a segment x + a (x' − x) a ReLU network is a piecewise affine function of a. `Curves` is a tensor
whose every example is such a curve, known by its values at vertices (`theory.vertices`). It passes
through ordinary module code: PyTorch hands every operation to `Curves.__torch_function__`.

    affine operations   act on the vertices as they are, one batch row a vertex;
    ReLU and its like   first insert vertices where units meet their kink, and set them to it there;
    maxima              first insert vertices at the corners of the upper envelope;
    several curves      are first interpolated onto the union of their vertices, which is exact;
    everything else     is refused by name: nothing is guessed.

To the network a batch of curves has the shape of a batch of examples, so that `len(x)`, views and
constants with one row an example keep their meaning whatever the number of vertices. An operation
that treats the examples of a batch together is refused.
"""

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils._pytree import tree_flatten, tree_map

from theory.errors import InputError
from theory.vertices import ROUNDING, Grid, adaptive_windows, corners, crossings, pooling_windows

_Rule = Callable[[Any, tuple, dict], Any]


@dataclass
class _Memory:
    """Shared by a tensor and its views, to see that one was overwritten through another."""

    overwritten: bool = False


class Curves(Tensor):
    """A batch of piecewise affine curves that looks like a batch of examples.

    Attributes:
        rows: Values at the vertices, float64 of shape (vertices, …).
        grid: The vertices.
        memory: Shared with views of the same storage.
    """

    rows: Tensor
    grid: Grid
    memory: _Memory

    @staticmethod
    def __new__(cls, rows: Tensor, grid: Grid, memory: _Memory | None = None) -> "Curves":
        """Curves with these values at the vertices."""
        # The tensor itself has the right shape and no memory; whatever reads it reads NaN.
        outside = rows.new_full((), math.nan).expand(grid.segments, *rows.shape[1:])
        curves = outside.as_subclass(cls)
        curves.rows, curves.grid, curves.memory = rows, grid, memory or _Memory()
        return curves

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Curves({self.grid.segments} segments, {len(self.rows)} vertices)"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by PyTorch in place of every function of a `Curves`."""
        kwargs = kwargs or {}
        if func in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is None:
            _refuse(func, "is not known to be piecewise affine")
        if "out" in kwargs:
            _refuse(func, "with out= writes into a given tensor")
        for curves in _curves_in((args, kwargs)):
            if not hasattr(curves, "memory"):
                _refuse(func, "follows an operation that cannot be followed")
            if curves.memory.overwritten:
                _refuse(func, "reads a tensor that was overwritten in place through a view of it")
        return rule(func, args, kwargs)

    def as_example(self) -> Tensor:
        """Zeros in the shape that the network sees, without memory."""
        return self.rows.new_zeros(()).expand(self.grid.segments, *self.rows.shape[1:])

    def move_to(self, grid: Grid) -> None:
        """Interpolates onto a finer grid."""
        if self.grid is not grid:
            self.rows, self.grid = grid.interpolate(self.rows, self.grid), grid


def _refuse(func: Any, fault: str) -> NoReturn:
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    raise InputError(
        f"{name} {fault}: exact pieces need affine operations, ReLU-like activations and "
        "max-pooling in evaluation mode; use quadrature for other networks"
    )


_TOGETHER = "treats the examples of a batch together"


# Which operation has which rule.


def _named(names: str) -> dict[Any, str]:
    """The functions and methods of these names, wherever PyTorch keeps them."""
    places = (torch, Tensor, F, torch._C._nn)
    return {
        getattr(place, name): name
        for name in names.split()
        for place in places
        if hasattr(place, name)
    }


def _properties(names: str) -> dict[Any, str]:
    return {getattr(Tensor, name).__get__: name for name in names.split() if hasattr(Tensor, name)}


_QUESTIONS = _named(
    "size dim ndimension numel nelement __len__ is_floating_point is_complex is_contiguous "
    "element_size get_device"
) | _properties(
    "shape ndim dtype device layout requires_grad is_cuda is_cpu is_meta is_sparse is_nested "
    "is_quantized is_mkldnn is_mps is_leaf"
)
_SUMS = (
    "add add_ __add__ __radd__ __iadd__ sub sub_ subtract rsub __sub__ __rsub__ __isub__ "
    "cat concat concatenate stack where masked_fill"
)
_PRODUCTS = "mul mul_ multiply __mul__ __rmul__ __imul__"
_QUOTIENTS = "div div_ divide true_divide __truediv__ __itruediv__"
_EXTREMA = "maximum minimum max min"
_ELEMENTWISE = _named(f"{_SUMS} {_PRODUCTS} {_QUOTIENTS} {_EXTREMA}")
_EXPANDS = _named("expand expand_as")
_RESHAPES = _EXPANDS | _named("view view_as reshape reshape_as")
_RULES: dict[Any, _Rule] = {}


def _for(functions: Any) -> Callable[[_Rule], _Rule]:
    """Makes a function the rule of these functions, or of those with these names."""

    def register(rule: _Rule) -> _Rule:
        _RULES.update(
            dict.fromkeys(_named(functions) if isinstance(functions, str) else functions, rule)
        )
        return rule

    return register


# Affine operations.


@_for(_properties("data mT"))
@_for(
    f"{_SUMS} neg neg_ negative __neg__ positive __pos__ clone contiguous detach double to view "
    "view_as reshape reshape_as expand expand_as flatten unflatten squeeze unsqueeze transpose "
    "swapaxes permute movedim select narrow chunk split tensor_split unbind index_select repeat "
    "tile sum mean pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d interpolate pixel_shuffle pixel_unshuffle channel_shuffle unfold fold"
)
def _affine(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation that is affine in all its curves together, row by row."""
    inplace = _is_inplace(func, kwargs)
    if inplace and not isinstance(args[0], Curves):
        _refuse(func, "writes into a tensor that does not depend on the input")
    outside = _on_shapes(func, args, kwargs)  # a fault of the network shows here as its own
    curves = _curves_in((args, kwargs))
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
        _refuse(func, _TOGETHER)
    return _wrapped(func, inside, outside, curves, grid, args[0] if inplace else None)


@_for(f"{_PRODUCTS} matmul mm __matmul__ __rmatmul__ einsum tensordot")
def _product(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation that is affine in one factor: two of them must not be curves."""
    if len(_curves_in((args, kwargs))) > 1:
        _refuse(func, "multiplies two tensors that depend on the input")
    return _affine(func, args, kwargs)


@_for(_QUOTIENTS)
def _quotient(func: Any, args: tuple, kwargs: dict) -> Any:
    if not isinstance(args[0], Curves):
        _refuse(func, "has a divisor that depends on the input")
    if kwargs.get("rounding_mode") is not None:
        _refuse(func, "rounds")
    return _product(func, args, kwargs)


@_for("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def _layer(func: Any, args: tuple, kwargs: dict) -> Any:
    """A linear layer or a convolution, whose input alone may be curves."""
    curves = _only_input(func, args, kwargs)
    axes = {"1d": 3, "2d": 4, "3d": 5}.get(func.__name__[-2:])
    if curves.rows.ndim < 2 or axes not in (None, curves.rows.ndim):
        _refuse(func, "got an input without a batch axis, or without channels,")
    inside = _called(func, curves.rows, args, kwargs)
    return _wrapped(func, inside, None, [curves], curves.grid)


# PyTorch hands on all arguments of these by name but the tensors; not so of their built-in twins.


@_for([F.batch_norm])
def _batch_norm(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"]:
        _refuse(func, "normalises by the statistics of the batch")
    return _layer(func, args, kwargs)


@_for([F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout])
def _dropout(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"] and kwargs["p"] > 0:
        _refuse(func, "is random in training mode")
    return args[0]


@_for("flip")
def _flip(func: Any, args: tuple, kwargs: dict) -> Any:
    axes = args[1:] or kwargs.get("dims", ())
    if any(axis % args[0].rows.ndim == 0 for axis in tree_flatten(axes)[0]):
        _refuse(func, _TOGETHER)
    return _affine(func, args, kwargs)


@_for("__getitem__")
def _index(func: Any, args: tuple, kwargs: dict) -> Any:
    curves, index = args
    if not isinstance(curves, Curves) or _curves_in(index):
        _refuse(func, "looks up by what depends on the input")
    outside = curves.as_example()[index]
    try:
        inside = curves.rows[index]
    except IndexError:
        _refuse(func, _TOGETHER)
    return _wrapped(func, inside, outside, [curves], curves.grid)


@_for("zeros_like ones_like full_like new_zeros new_ones new_full new_tensor")
def _constant(func: Any, args: tuple, kwargs: dict) -> Any:
    """Constants in the shape or the type of the examples: no curves."""
    return func(_only_input(func, args, kwargs).as_example(), *args[1:], **kwargs)


# Operations with kinks.


@_for([F.rrelu])
def _random_relu(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"]:
        _refuse(func, "is random in training mode")
    return _activation(func, args, kwargs)


@_for(
    "relu relu_ leaky_relu leaky_relu_ prelu abs abs_ absolute __abs__ relu6 hardtanh hardtanh_ "
    "hardsigmoid clamp clamp_ clip clip_ clamp_min clamp_max"
)
def _activation(func: Any, args: tuple, kwargs: dict) -> Any:
    """ReLU and its like: affine between given levels of each unit."""
    curves = _only_input(func, args, kwargs)
    found = [
        (level, *crossings(curves.rows, curves.grid, level))
        for level in _levels(func, args, kwargs)
    ]
    grid = curves.grid.inserted(torch.cat([curves.grid.keys[:0], *(keys for _, keys, _ in found)]))
    rows = grid.interpolate(curves.rows, curves.grid).contiguous()
    flat = rows.view(len(rows), -1)
    for level, keys, unit in found:
        flat[grid.nearest(keys), unit] = level
    inside = _called(func, rows, args, kwargs)
    target = curves if _is_inplace(func, kwargs) else None
    return _wrapped(func, inside, None, [curves], grid, target)


def _levels(func: Any, args: tuple, kwargs: dict) -> list[float]:
    """The values of z at which an activation has its kinks."""
    levels = _LEVELS.get(func.__name__.strip("_"), lambda *args, **kwargs: (0.0,))(*args, **kwargs)
    if any(isinstance(level, Tensor) for level in levels):
        _refuse(func, "has bounds that are tensors, not numbers,")
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


@_for(f"{_EXTREMA} amax amin")
def _extremum(func: Any, args: tuple, kwargs: dict) -> Any:
    """The larger, or the smaller, of two tensors; or of one along an axis."""
    if len(args) < 2 or not isinstance(args[1], Tensor):
        return _reduced_extremum(func, args, kwargs)
    difference = _affine(torch.sub, args[:2], {})
    keys, _ = crossings(difference.rows, difference.grid, 0.0)
    grid = difference.grid.inserted(keys)
    for curves in _curves_in(args):
        curves.move_to(grid)
    return _affine(func, args, kwargs)


def _reduced_extremum(func: Any, args: tuple, kwargs: dict) -> Any:
    """Over axes, all of which are one window."""
    curves = _only_input(func, args, kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("dim", ())
    axes = sorted({axis % curves.rows.ndim for axis in tree_flatten(given)[0]})
    if not axes or axes[0] == 0:
        _refuse(func, _TOGETHER)
    values = curves.rows.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
    values = values.reshape(len(values), -1, values.shape[-1])
    sign = -1 if "min" in func.__name__ else 1
    grid = curves.grid.inserted(corners(sign * values, curves.grid))
    inside = _called(func, grid.interpolate(curves.rows, curves.grid), args, kwargs)
    if isinstance(inside, Tensor):
        return _wrapped(func, inside, None, [curves], grid)
    # Which one is largest changes along the curve: there is no index to return.
    return _Extremum(_wrapped(func, inside[0], None, [curves], grid), None)


_Extremum = namedtuple("_Extremum", ["values", "indices"])


@_for(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices"
)
def _max_pool(func: Any, args: tuple, kwargs: dict) -> Any:
    curves = _only_input(func, args, kwargs)
    outside = _on_shapes(func, args, kwargs)
    if not isinstance(outside, Tensor):
        _refuse(func, "returns indices, which change along the curve,")
    sizes, outputs = curves.rows.shape[2:], outside.shape[2:]
    count = next(n for n in (1, 2, 3) if f"{n}d" in func.__name__)
    if len(sizes) != count:
        _refuse(func, "got an input without a batch axis, or without channels,")
    if "adaptive" in func.__name__:
        windows = adaptive_windows(sizes, outputs)
    else:
        names = ("input", "kernel_size", "stride", "padding", "dilation")
        given = {"padding": 0, "dilation": 1, **dict(zip(names, args, strict=False)), **kwargs}
        given["stride"] = given.get("stride") or given["kernel_size"]
        windows = pooling_windows(sizes, outputs, *(_each(given[n], count) for n in names[1:]))
    values = curves.rows.flatten(2)[:, :, windows.to(curves.rows.device)].flatten(1, 2)
    grid = curves.grid.inserted(corners(values, curves.grid))
    inside = _called(func, grid.interpolate(curves.rows, curves.grid), args, kwargs)
    # Many a kink loses the maximum: it need not be carried on.
    grid, inside = grid.straightened(inside, ROUNDING)
    return _wrapped(func, inside, outside, [curves], grid)


# What the rules have in common.


def _curves_in(arguments: Any) -> list[Curves]:
    return [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Curves)]


def _only_input(func: Any, args: tuple, kwargs: dict) -> Curves:
    """The input of an operation that depends on the network's input in nothing else."""
    curves = args[0] if args else kwargs.get("input")
    if not isinstance(curves, Curves) or len(_curves_in((args, kwargs))) > 1:
        _refuse(func, "has a parameter that depends on the input")
    return curves


def _called(func: Any, rows: Tensor, args: tuple, kwargs: dict) -> Any:
    """The function with other rows as its input."""
    return func(rows, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})


def _each(number: int | Sequence[int], count: int) -> Sequence[int]:
    numbers = [number] if isinstance(number, int) else list(number)
    return numbers * count if len(numbers) == 1 else numbers


def _is_inplace(func: Any, kwargs: dict) -> bool:
    name = getattr(func, "__name__", "")
    if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__"):
        return True
    return (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace", False)


def _on_shapes(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the batch of examples that the network sees, on shapes alone."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, Curves):
            sizes = (leaf.grid.segments, *leaf.rows.shape[1:])
            return torch.empty(sizes, dtype=leaf.rows.dtype, device="meta")
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    return func(*tree_map(shape, args), **tree_map(shape, kwargs))


def _put_on_one_grid(curves: Sequence[Curves]) -> Grid:
    """Interpolates all of them onto the union of their vertices."""
    grid = curves[0].grid
    for other in curves[1:]:
        if other.grid is not grid:
            grid = grid.inserted(other.grid.keys)
    for one in curves:
        one.move_to(grid)
    return grid


def _wrapped(
    func: Any, inside: Any, outside: Any, curves: Sequence[Curves], grid: Grid, target: Any = None
) -> Any:
    """The result as curves, or written into `target`.

    It must have one row a vertex, and one row an example in the network's eyes, `outside`; the
    latter is None for operations that cannot but work row by row.
    """
    if isinstance(inside, (tuple, list)):
        pairs = zip(inside, outside, strict=True)
        return tuple(_wrapped(func, a, b, curves, grid) for a, b in pairs)
    if outside is None:
        outside = inside.new_empty(()).expand(grid.segments, *inside.shape[1:])
    expected = (len(grid.keys), *outside.shape[1:])
    if outside.ndim == 0 or outside.shape[0] != grid.segments or inside.shape != expected:
        _refuse(func, _TOGETHER)
    for dtype in (inside.dtype, outside.dtype):
        if dtype != torch.float64:
            _refuse(func, f"computes in {str(dtype).removeprefix('torch.')}, not in float64,")
    if target is not None:
        target.memory.overwritten = True
        target.rows, target.grid, target.memory = inside, grid, _Memory()
        return target
    place = inside.untyped_storage().data_ptr()
    shared = [one.memory for one in curves if one.rows.untyped_storage().data_ptr() == place]
    return Curves(inside, grid, shared[0] if shared else None)
