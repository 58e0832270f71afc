"""The tensor of curves, the table of rules for it, and what the rules have in common."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils._pytree import tree_flatten, tree_map

from theory.curves.vertices import Grid
from theory.errors import InputError

Rule = Callable[[Any, tuple, dict], Any]


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
        rule = RULES.get(func)
        if rule is None:
            refuse(func, "is not known to be piecewise affine")
        if "out" in kwargs:
            refuse(func, "with out= writes into a given tensor")
        for curves in curves_in((args, kwargs)):
            if not hasattr(curves, "memory"):
                refuse(func, "follows an operation that cannot be followed")
            if curves.memory.overwritten:
                refuse(func, "reads a tensor that was overwritten in place through a view of it")
        return rule(func, args, kwargs)

    def as_example(self) -> Tensor:
        """Zeros in the shape that the network sees, without memory."""
        return self.rows.new_zeros(()).expand(self.grid.segments, *self.rows.shape[1:])

    def move_to(self, grid: Grid) -> None:
        """Interpolates onto a finer grid."""
        if self.grid is not grid:
            self.rows, self.grid = grid.interpolate(self.rows, self.grid), grid


def refuse(func: Any, fault: str) -> NoReturn:
    """Raises the `InputError` that names the operation and its fault."""
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    raise InputError(
        f"{name} {fault}: exact pieces need affine operations, ReLU-like activations and "
        "max-pooling in evaluation mode; leave max_pieces out for other networks"
    )


TOGETHER = "treats the examples of a batch together"


# Which operation has which rule.


def named(names: str) -> dict[Any, str]:
    """The functions and methods of these names, wherever PyTorch keeps them."""
    places = (torch, Tensor, F, torch._C._nn)
    return {
        getattr(place, name): name
        for name in names.split()
        for place in places
        if hasattr(place, name)
    }


def properties(names: str) -> dict[Any, str]:
    """The getters of these properties of a tensor."""
    return {getattr(Tensor, name).__get__: name for name in names.split() if hasattr(Tensor, name)}


_QUESTIONS = named(
    "size dim ndimension numel nelement __len__ is_floating_point is_complex is_contiguous "
    "element_size get_device"
) | properties(
    "shape ndim dtype device layout requires_grad is_cuda is_cpu is_meta is_sparse is_nested "
    "is_quantized is_mkldnn is_mps is_leaf"
)
RULES: dict[Any, Rule] = {}


def rule_for(functions: Any) -> Callable[[Rule], Rule]:
    """Makes what it decorates the rule of these functions, or of those with these names."""

    def register(rule: Rule) -> Rule:
        RULES.update(
            dict.fromkeys(named(functions) if isinstance(functions, str) else functions, rule)
        )
        return rule

    return register


# What the rules have in common.


def curves_in(arguments: Any) -> list[Curves]:
    """The curves among arguments, also within lists of them."""
    return [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Curves)]


def only_input(func: Any, args: tuple, kwargs: dict) -> Curves:
    """The input of an operation that depends on the network's input in nothing else."""
    curves = args[0] if args else kwargs.get("input")
    if not isinstance(curves, Curves) or len(curves_in((args, kwargs))) > 1:
        refuse(func, "has a parameter that depends on the input")
    return curves


def called(func: Any, rows: Tensor, args: tuple, kwargs: dict) -> Any:
    """The function with other rows as its input."""
    return func(rows, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})


def is_inplace(func: Any, kwargs: dict) -> bool:
    """Whether the operation overwrites its first argument."""
    name = getattr(func, "__name__", "")
    if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__"):
        return True
    return (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace", False)


def on_shapes(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the batch of examples that the network sees, on shapes alone."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, Curves):
            sizes = (leaf.grid.segments, *leaf.rows.shape[1:])
            return torch.empty(sizes, dtype=leaf.rows.dtype, device="meta")
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    return func(*tree_map(shape, args), **tree_map(shape, kwargs))


def wrapped(
    func: Any, inside: Any, outside: Any, curves: Sequence[Curves], grid: Grid, target: Any = None
) -> Any:
    """The result as curves, or written into `target`.

    It must have one row a vertex, and one row an example in the network's eyes, `outside`; the
    latter is None for operations that cannot but work row by row.
    """
    if isinstance(inside, (tuple, list)):
        pairs = zip(inside, outside, strict=True)
        return tuple(wrapped(func, a, b, curves, grid) for a, b in pairs)
    if outside is None:
        outside = inside.new_empty(()).expand(grid.segments, *inside.shape[1:])
    expected = (len(grid.keys), *outside.shape[1:])
    if outside.ndim == 0 or outside.shape[0] != grid.segments or inside.shape != expected:
        refuse(func, TOGETHER)
    for dtype in (inside.dtype, outside.dtype):
        if dtype != torch.float64:
            refuse(func, f"computes in {str(dtype).removeprefix('torch.')}, not in float64,")
    if target is not None:
        target.memory.overwritten = True
        target.rows, target.grid, target.memory = inside, grid, _Memory()
        return target
    place = inside.untyped_storage().data_ptr()
    shared = [one.memory for one in curves if one.rows.untyped_storage().data_ptr() == place]
    return Curves(inside, grid, shared[0] if shared else None)
