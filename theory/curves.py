"""Piecewise affine curves carried through a network: the engine of `theory.segments`.

On a segment x + a (x' − x) a ReLU network is a piecewise affine function of a. `Curves` is a tensor
whose every example is such a curve, known by its values at the vertices between its pieces. It
passes through ordinary module code: PyTorch hands every operation to `Curves.__torch_function__`.

    affine operations   act on the vertices as they are, one batch row a vertex;
    ReLU and its like   first insert the vertices where a unit meets its kink, found by linear
                        interpolation between neighbours, and set the unit to the kink there;
    maxima              first insert the corners of the upper envelope;
    several curves      are first interpolated onto the union of their vertices, which is exact;
    everything else     is refused by name: nothing is guessed.

To the network a batch of curves has the shape of a batch of examples, so that `len(x)`, views and
constants with one row an example keep their meaning whatever the number of vertices. An operation
that treats the examples of a batch together is refused.
"""

import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils._pytree import tree_flatten, tree_map

from theory.errors import InputError

# Positions are integers, so that equal vertices are equal: a = tick / 2^46, and a vertex's key is
# segment · 2^47 + tick, which sorts by segment and then by position.
TICKS = 1 << 46
MOST_SEGMENTS = 1 << 16
MERGED = 7  # ticks, 1e-13: vertices no further apart are one
_NOISE = 4 * torch.finfo(torch.float64).eps  # of the largest value of its row: taken for zero


class TooManyVertices(Exception):
    """The curves outgrew the memory set aside for them; cut the segments shorter."""


@dataclass(frozen=True)
class Grid:
    """The vertices of a batch of segments, in order.

    Attributes:
        keys: segment · 2^47 + a · 2^46 of each vertex, ascending; int64.
        segments: Number of segments; each has at least its two ends.
        limit: Most vertices that may be held.
    """

    keys: Tensor
    segments: int
    limit: int

    @classmethod
    def between(cls, left: Tensor, right: Tensor, limit: int) -> "Grid":
        """One segment for each pair of ticks, with no vertex but its ends."""
        first = torch.arange(len(left), device=left.device) * (2 * TICKS)
        return cls(torch.stack([first + left, first + right], 1).flatten(), len(left), limit)

    @property
    def segment(self) -> Tensor:
        """The segment of each vertex."""
        return self.keys // (2 * TICKS)

    @property
    def ticks(self) -> Tensor:
        """a · 2^46 of each vertex."""
        return self.keys % (2 * TICKS)

    def inserted(self, keys: Tensor) -> "Grid":
        """The grid with further vertices; those within 1e-13 of their predecessor are left out."""
        every = torch.cat([self.keys, keys]).unique()
        if len(every) == len(self.keys):
            return self
        old = torch.isin(every, self.keys, assume_unique=True)
        gap = every.diff() > MERGED
        kept = old.clone()
        # The first and the last vertex are ends of segments, hence old.
        kept[1:-1] |= gap[:-1] & (gap[1:] | ~old[2:])
        if int(kept.sum()) > self.limit:
            raise TooManyVertices
        return Grid(every[kept], self.segments, self.limit)

    def nearest(self, keys: Tensor) -> Tensor:
        """The vertex that stands for each of the positions."""
        above = torch.searchsorted(self.keys, keys).clamp(1, len(self.keys) - 1)
        return above - (keys - self.keys[above - 1] < self.keys[above] - keys).long()

    def interpolate(self, rows: Tensor, coarser: "Grid") -> Tensor:
        """Rows given on a coarser grid, as new rows on this one."""
        left = torch.searchsorted(coarser.keys, self.keys, right=True) - 1
        fine = rows.index_select(0, left)
        new = (coarser.keys[left] != self.keys).nonzero().squeeze(1)
        if len(new):
            below = left[new]
            step = (self.keys[new] - coarser.keys[below]).to(rows.dtype)
            step = step / (coarser.keys[below + 1] - coarser.keys[below])
            step = step.reshape(-1, *(1,) * (rows.ndim - 1))
            fine[new] = torch.lerp(fine[new], rows.index_select(0, below + 1), step)
        return fine


@dataclass
class _Memory:
    """Shared by a tensor and its views, to see that one was overwritten through another."""

    overwritten: bool = field(default=False)


class Curves(Tensor):
    """A batch of piecewise affine curves that looks like a batch of examples.

    Attributes:
        rows: Values at the vertices, float64 of shape (vertices, …).
        grid: The vertices.
    """

    rows: Tensor
    grid: Grid
    memory: _Memory

    @staticmethod
    def __new__(cls, rows: Tensor, grid: Grid, memory: _Memory | None = None) -> "Curves":
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
        if func in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        rule = _RULES.get(func)
        if rule is None:
            _refuse(func, "is not known to be piecewise affine")
        for curves in _curves_in((args, kwargs)):
            if not hasattr(curves, "memory"):
                _refuse(func, "follows an operation that cannot be followed")
            if curves.memory.overwritten:
                _refuse(func, "reads a tensor that was overwritten in place through a view of it")
        return rule(func, args, kwargs or {})


def _refuse(func: Any, fault: str) -> NoReturn:
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    raise InputError(
        f"{name} {fault}: exact pieces need affine operations, ReLU-like activations and "
        "max-pooling in evaluation mode; use quadrature for other networks"
    )


def _curves_in(arguments: Any) -> list[Curves]:
    return [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Curves)]


def _put_on_one_grid(curves: Sequence[Curves]) -> Grid:
    """Interpolates all of them onto the union of their vertices."""
    grid = curves[0].grid
    if any(other.grid is not grid for other in curves):
        for other in curves[1:]:
            if other.grid is not grid:
                grid = grid.inserted(other.grid.keys)
        for one in curves:
            _move(one, grid)
    return grid


def _move(curves: Curves, grid: Grid) -> None:
    # A vertex that the union merged away leaves its neighbour in its place.
    if curves.grid is not grid:
        curves.rows = grid.interpolate(curves.rows, curves.grid)
        curves.grid = grid


def _is_inplace(func: Any, kwargs: dict) -> bool:
    name = getattr(func, "__name__", "")
    if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__"):
        return True
    return (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace", False)


def _on_shapes(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the batch of examples that the network sees, on shapes alone."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, Curves):
            shape = (leaf.grid.segments, *leaf.rows.shape[1:])
            return torch.empty(shape, dtype=leaf.rows.dtype, device="meta")
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    args, kwargs = tree_map(shape, (args, kwargs))
    return func(*args, **kwargs)


def _affine(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation that is affine in all its curves together, row by row."""
    if "out" in kwargs:
        _refuse(func, "with out= writes into a given tensor")
    inplace = _is_inplace(func, kwargs)
    if inplace and not isinstance(args[0], Curves):
        _refuse(func, "writes into a tensor that does not depend on the input")
    outside = _on_shapes(func, args, kwargs)  # a fault of the network shows here as its own
    curves = _curves_in((args, kwargs))
    grid = _put_on_one_grid(curves)
    by_example = func in _ELEMENTWISE

    def vertices(leaf: Any) -> Any:
        if isinstance(leaf, Curves):
            return leaf.rows.clone() if inplace and leaf is args[0] else leaf.rows
        if by_example and isinstance(leaf, Tensor) and _has_row_an_example(leaf, curves[0]):
            return leaf.index_select(0, grid.segment)
        return leaf

    try:
        if func in _RESHAPES:
            shape = (len(grid.keys), *outside.shape[1:])
            rows = curves[0].rows
            inside = rows.expand(shape) if func in _EXPANDS else rows.reshape(shape)
        else:
            inside = func(*tree_map(vertices, args), **tree_map(vertices, kwargs))
    except RuntimeError as error:
        if isinstance(error, InputError):
            raise
        _refuse(func, "treats the examples of a batch together")
    return _wrapped(func, inside, outside, curves, grid, args[0] if inplace else None)


def _has_row_an_example(constant: Tensor, curves: Curves) -> bool:
    return constant.ndim == curves.rows.ndim and len(constant) == curves.grid.segments


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
        _refuse(func, "treats the examples of a batch together")
    for dtype in (inside.dtype, outside.dtype):
        if dtype != torch.float64:
            _refuse(func, f"computes in {str(dtype).removeprefix('torch.')}, not in float64")
    if target is not None:
        target.memory.overwritten = True
        target.rows, target.grid, target.memory = inside, grid, _Memory()
        return target
    place = inside.untyped_storage().data_ptr()
    shared = [c.memory for c in curves if c.rows.untyped_storage().data_ptr() == place]
    return Curves(inside, grid, shared[0] if shared else None)


def _product(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation that is affine in one factor: two of them must not be curves."""
    if len(_curves_in((args, kwargs))) > 1:
        _refuse(func, "multiplies two tensors that depend on the input")
    return _affine(func, args, kwargs)


def _layer(func: Any, args: tuple, kwargs: dict) -> Any:
    """A linear layer or a convolution, whose input alone may be curves."""
    curves = _input(args, kwargs)
    if not isinstance(curves, Curves) or len(_curves_in((args, kwargs))) > 1:
        _refuse(func, "has a weight that depends on the input")
    axes = {"1d": 3, "2d": 4, "3d": 5}.get(func.__name__[-2:])
    if curves.rows.ndim < 2 or axes not in (None, curves.rows.ndim):
        _refuse(func, "got an input without a batch axis, or without channels,")
    inside = _called(func, curves.rows, args, kwargs)
    return _wrapped(func, inside, None, [curves], curves.grid)


def _quotient(func: Any, args: tuple, kwargs: dict) -> Any:
    if not isinstance(args[0], Curves):
        _refuse(func, "has a divisor that depends on the input")
    if kwargs.get("rounding_mode") is not None:
        _refuse(func, "rounds")
    return _product(func, args, kwargs)


def _input(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else kwargs.get("input")


def _called(func: Any, rows: Tensor, args: tuple, kwargs: dict) -> Any:
    """The function with other rows as its input."""
    return func(rows, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})


def _batch_norm(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"]:
        _refuse(func, "normalises by the statistics of the batch")
    return _layer(func, args, kwargs)


def _dropout(func: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs["training"] and kwargs["p"] > 0:
        _refuse(func, "is random in training mode")
    return args[0]


def _flip(func: Any, args: tuple, kwargs: dict) -> Any:
    axes = args[1:] or kwargs.get("dims", ())
    curves = args[0]
    if any(axis % curves.rows.ndim == 0 for axis in tree_flatten(axes)[0]):
        _refuse(func, "treats the examples of a batch together")
    return _affine(func, args, kwargs)


def _index(func: Any, args: tuple, kwargs: dict) -> Any:
    curves, index = args
    if not isinstance(curves, Curves) or _curves_in(index):
        _refuse(func, "looks up by what depends on the input")
    grid = curves.grid
    outside = _example(curves)[index]
    try:
        inside = curves.rows[index]
    except IndexError:
        _refuse(func, "treats the examples of a batch together")
    return _wrapped(func, inside, outside, [curves], grid)


def _example(curves: Curves) -> Tensor:
    """An ordinary tensor in the shape that the network sees, without memory."""
    return curves.rows.new_zeros(()).expand(curves.grid.segments, *curves.rows.shape[1:])


def _constant(func: Any, args: tuple, kwargs: dict) -> Any:
    """Zeros and ones in the shape of the examples: no curves."""
    if not isinstance(args[0], Curves) or len(_curves_in((args, kwargs))) > 1:
        _refuse(func, "fills a tensor with what depends on the input")
    return func(_example(args[0]), *args[1:], **kwargs)


# Kinks.


def _crossings(rows: Tensor, grid: Grid, level: float) -> tuple[Tensor, Tensor]:
    """Where a unit passes the level between two neighbours: (keys, units of the flat row)."""
    z = rows.flatten(1)
    noise = _NOISE * (torch.linalg.vector_norm(z, math.inf, dim=1, keepdim=True) + abs(level))
    above, below = z > level + noise, z < level - noise
    passes = (above[:-1] & below[1:]) | (below[:-1] & above[1:])
    passes &= (grid.segment.diff() == 0)[:, None]
    k, unit = passes.nonzero(as_tuple=True)
    start, end = z[k, unit] - level, z[k + 1, unit] - level
    return _keys_at(grid, k, start / (start - end)), unit


def _keys_at(grid: Grid, k: Tensor, share: Tensor) -> Tensor:
    """The key at a share of the way from vertex k to the next."""
    return grid.keys[k] + (share * (grid.keys[k + 1] - grid.keys[k])).round().long()


def _levels(func: Any, args: tuple, kwargs: dict) -> tuple[float, ...]:
    """The values of z at which a piecewise affine activation has its kinks."""
    levels = _LEVELS.get(func.__name__.strip("_"), (0.0,))
    if callable(levels):
        levels = levels(*args, **kwargs)
    if any(isinstance(level, Tensor) for level in levels):
        _refuse(func, "has bounds that are tensors, not numbers,")
    return tuple(float(level) for level in levels if level is not None and math.isfinite(level))


# Parameters carry the names and the order of the PyTorch functions.
_LEVELS: dict[str, Any] = {
    "relu6": (0.0, 6.0),
    "hardsigmoid": (-3.0, 3.0),
    "hardtanh": lambda input, min_val=-1.0, max_val=1.0, inplace=False: (min_val, max_val),
    "clamp": lambda input, min=None, max=None: (min, max),
    "clip": lambda input, min=None, max=None: (min, max),
    "clamp_min": lambda input, min: (min,),
    "clamp_max": lambda input, max: (max,),
}


def _activation(func: Any, args: tuple, kwargs: dict) -> Any:
    """ReLU and its like: affine between given levels of each unit."""
    curves = _input(args, kwargs)
    if not isinstance(curves, Curves) or len(_curves_in((args, kwargs))) > 1:
        _refuse(func, "has a slope or a bound that depends on the input")
    if func is F.rrelu and kwargs["training"]:
        _refuse(func, "is random in training mode")
    found = [(level, *_crossings(curves.rows, curves.grid, level))
             for level in _levels(func, args, kwargs)]  # fmt: skip
    grid = curves.grid.inserted(torch.cat([keys for _, keys, _ in found]))
    rows = grid.interpolate(curves.rows, curves.grid).contiguous()
    flat = rows.view(len(rows), -1)
    for level, keys, unit in found:
        flat[grid.nearest(keys), unit] = level
    inplace = _is_inplace(func, kwargs)
    inside = _called(func, rows, args, kwargs)
    return _wrapped(func, inside, None, [curves], grid, curves if inplace else None)


def _extremum(func: Any, args: tuple, kwargs: dict) -> Any:
    """The larger, or the smaller, of two tensors; or of one along an axis."""
    if len(args) < 2 or not isinstance(args[1], Tensor):
        return _reduced_extremum(func, args, kwargs)
    curves = _curves_in(args)
    difference = _affine(torch.sub, args[:2], {})
    keys, _ = _crossings(difference.rows, difference.grid, 0.0)
    grid = difference.grid.inserted(keys)
    for one in curves:
        _move(one, grid)
    return _affine(func, args, kwargs)


def _reduced_extremum(func: Any, args: tuple, kwargs: dict) -> Any:
    """max, min, amax or amin over axes, all of which are one window."""
    curves = _input(args, kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("dim", ())
    axes = sorted({axis % curves.rows.ndim for axis in tree_flatten(given)[0]})
    if not axes or axes[0] == 0:
        _refuse(func, "treats the examples of a batch together")
    rows = curves.rows.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
    values = rows.reshape(len(rows), -1, rows.shape[-1])
    grid = curves.grid.inserted(
        _corners(-values if "min" in func.__name__ else values, curves.grid)
    )
    rows = grid.interpolate(curves.rows, curves.grid)
    outside = _on_shapes(func, args, kwargs)
    inside = _called(func, rows, args, kwargs)
    if not isinstance(inside, tuple):
        return _wrapped(func, inside, outside, [curves], grid)
    # Which one is largest changes along the curve: there is no index to return.
    return _Extremum(_wrapped(func, inside[0], outside[0], [curves], grid), None)


_Extremum = namedtuple("_Extremum", ["values", "indices"])


def _max_pool(func: Any, args: tuple, kwargs: dict) -> Any:
    """Max-pooling over one, two or three axes."""
    curves = _input(args, kwargs)
    outside = _on_shapes(func, args, kwargs)
    if not isinstance(outside, Tensor):
        _refuse(func, "returns indices, which change along the curve,")
    sizes = curves.rows.shape[2:]
    count = 3 if "3d" in func.__name__ else 2 if "2d" in func.__name__ else 1
    if len(sizes) != count:
        _refuse(func, "got no batch of examples with channels")
    if "adaptive" in func.__name__:
        axes = [_adaptive_windows(n, m) for n, m in zip(sizes, outside.shape[2:], strict=True)]
    else:
        names = ("input", "kernel_size", "stride", "padding", "dilation")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        kernel = _each(given["kernel_size"], count)
        stride = _each(given.get("stride") or kernel, count)
        padding, dilation = _each(given.get("padding", 0), count), _each(
            given.get("dilation", 1), count
        )  # fmt: skip
        axes = [
            torch.arange(m)[:, None] * s - p + torch.arange(k) * d
            for m, k, s, p, d in zip(
                outside.shape[2:], kernel, stride, padding, dilation, strict=True
            )
        ]
    windows = _windows(axes, sizes).to(curves.rows.device)
    values = curves.rows.flatten(2)[:, :, windows].flatten(1, 2)
    grid = curves.grid.inserted(_corners(values, curves.grid))
    rows = grid.interpolate(curves.rows, curves.grid)
    inside = _called(func, rows, args, kwargs)
    return _wrapped(func, inside, outside, [curves], grid)


def _each(number: int | Sequence[int], count: int) -> Sequence[int]:
    if isinstance(number, int):
        return [number] * count
    return list(number) * count if len(number) == 1 else number


def _adaptive_windows(size: int, outputs: int) -> Tensor:
    """Positions of adaptive pooling along one axis; past a window's end its last repeats."""
    start = torch.arange(outputs) * size // outputs
    end = -((-torch.arange(1, outputs + 1) * size) // outputs)
    longest = int((end - start).max())
    return torch.minimum(start[:, None] + torch.arange(longest), end[:, None] - 1)


def _windows(axes: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Flat positions (windows, members); members in the padding are replaced by one that is not."""
    flat = torch.zeros(1, 1, dtype=torch.long)
    valid = torch.ones(1, 1, dtype=torch.bool)
    for positions, size in zip(axes, sizes, strict=True):
        inside = (positions >= 0) & (positions < size)
        flat = (
            (flat[:, None, :, None] * size + positions[None, :, None, :]).flatten(2).flatten(0, 1)
        )
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)
    real = flat.gather(1, valid.long().argmax(1, keepdim=True))
    return torch.where(valid, flat, real)


def _corners(values: Tensor, grid: Grid) -> Tensor:
    """Keys where the maximum over the last axis changes its line between two vertices.

    Args:
        values: (vertices, windows, members).
        grid: The vertices.
    """
    noise = _NOISE * torch.linalg.vector_norm(values.flatten(1), math.inf, dim=1)
    noise = torch.maximum(noise[:-1], noise[1:])[:, None]
    left, right = values[:-1], values[1:]
    best_left, best_right = left.amax(-1), right.amax(-1)
    # The line that leads just after the left vertex: of those on top, the one that ends highest.
    on_top = left >= (best_left - noise)[..., None]
    leader = torch.where(on_top, right, -math.inf).argmax(-1)
    led = right.gather(-1, leader[..., None]).squeeze(-1)
    changes = (led < best_right - noise) & (grid.segment.diff() == 0)[:, None]
    k, window = changes.nonzero(as_tuple=True)
    left, right, now = left[k, window], right[k, window], leader[k, window]
    goal = (best_right - noise)[k, window]
    found = []
    for _ in range(values.shape[-1]):  # every line leads at most once
        if not len(k):
            break
        here, there = left.gather(1, now[:, None]), right.gather(1, now[:, None])
        gain = (right - left) - (there - here)
        share = torch.where(gain > 0, ((here - left) / gain).clamp(min=0), math.inf)
        # A line that passes only after the next vertex, or by rounding never, is none.
        share[right <= there] = math.inf
        first, now = share.min(1)
        found.append(_keys_at(grid, k, first.clamp(max=1)))
        going = right.gather(1, now[:, None]).squeeze(1) < goal
        k, left, right, now, goal = k[going], left[going], right[going], now[going], goal[going]
    return torch.cat(found) if found else grid.keys[:0]


# Which operation has which rule.


def _named(names: Iterable[str]) -> set[Any]:
    """The functions and methods of these names, wherever PyTorch keeps them."""
    places = (torch, Tensor, F, torch._C._nn)
    return {getattr(place, name) for name in names for place in places if hasattr(place, name)}


def _properties(names: str) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names.split() if hasattr(Tensor, name)}


_QUESTIONS = _named(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "__len__",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "element_size",
        "get_device",
    ]
) | _properties(
    "shape ndim dtype device layout requires_grad is_cuda is_cpu is_meta is_sparse is_nested "
    "is_quantized is_mkldnn is_mps is_leaf"
)
_EXPANDS = _named(["expand", "expand_as"])
_RESHAPES = _EXPANDS | _named(["view", "view_as", "reshape", "reshape_as"])
_ELEMENTWISE = _named(
    [
        "add",
        "add_",
        "__add__",
        "__radd__",
        "__iadd__",
        "sub",
        "sub_",
        "subtract",
        "rsub",
        "__sub__",
        "__rsub__",
        "__isub__",
        "mul",
        "mul_",
        "multiply",
        "__mul__",
        "__rmul__",
        "__imul__",
        "div",
        "div_",
        "divide",
        "true_divide",
        "__truediv__",
        "__itruediv__",
        "maximum",
        "minimum",
        "max",
        "min",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "where",
        "masked_fill",
    ]
)
_RULES: dict[Any, Callable[[Any, tuple, dict], Any]] = {}
for _rule, _names in (
    (
        _affine,
        "add add_ __add__ __radd__ __iadd__ sub sub_ subtract rsub __sub__ __rsub__ __isub__ neg "
        "neg_ negative __neg__ positive __pos__ cat concat concatenate stack where masked_fill "
        "clone contiguous detach double to view view_as reshape reshape_as expand expand_as "
        "flatten unflatten squeeze unsqueeze transpose swapaxes permute movedim select narrow "
        "chunk split tensor_split unbind index_select repeat tile sum mean pad avg_pool1d "
        "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "interpolate pixel_shuffle pixel_unshuffle channel_shuffle unfold fold",
    ),
    (_product, "mul mul_ multiply __mul__ __rmul__ __imul__ matmul mm __matmul__ __rmatmul__ "
     "einsum tensordot"),
    (_quotient, "div div_ divide true_divide __truediv__ __itruediv__"),
    (_layer, "linear conv1d conv2d conv3d "
     "conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_flip, "flip"),
    (_index, "__getitem__"),
    (_constant, "zeros_like ones_like full_like new_zeros new_ones new_full new_tensor"),
    (_activation, "relu relu_ leaky_relu leaky_relu_ prelu abs abs_ absolute __abs__ relu6 "
     "hardtanh hardtanh_ hardsigmoid clamp clamp_ clip clip_ clamp_min clamp_max"),
    (_extremum, "maximum minimum max min amax amin"),
    (_max_pool, "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d "
     "adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
     "max_pool3d_with_indices"),
):  # fmt: skip
    _RULES |= dict.fromkeys(_named(_names.split()), _rule)
# PyTorch hands on all arguments of these by name but the tensors; not so of their built-in twins.
_RULES |= {F.batch_norm: _batch_norm, F.rrelu: _activation}
_RULES |= dict.fromkeys(
    (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    _dropout,
)
_RULES |= dict.fromkeys(_properties("data mT"), _affine)
