"""Networks applied to truncated power series, by ordinary PyTorch code.

`Series` is a tensor that stands for Σ_k u_k a^k and holds the stack u_0 … u_{T−1}; `SeriesMode`
catches every operation that reaches PyTorch's dispatcher while it is active and applies the
operation's rule (the other modules of this package) to the stacks. Modules, functional calls,
in-place updates and library layers such as attention arrive there as the same few hundred
elementary operations, so a model needs no rewriting, and an operation without a rule is refused by
its name.

Coefficients that are zero because nothing can have filled them are not stored: along a line a
network of linear layers and ReLUs keeps two, whatever the order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from theory.errors import InputError

aten: Any = torch.ops.aten
NESTED_MOST = 4  # the highest order of the nested engine, whose cost grows exponentially
# The operation's own arguments follow the number of terms; a result may be series, constant tensors
# or a mixture.
Rule = Callable[..., Any]
READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero")
# Written to later, these may come to hold series.
FACTORIES = (
    "zeros", "ones", "full", "empty", "empty_strided", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like", "empty_like",
)  # fmt: skip


class Series(Tensor):
    """Σ_k u_k a^k as a tensor of the shape of u_0.

    Attributes:
        stack: u_0 … u_{T−1}, of shape (T, *shape); further coefficients are zero.
        room: Where a constant made by the model may be written to later, the number of coefficients
            written so far, in a list that it shares with its views; their stacks have a place for
            every order. None elsewhere.
        aliased: "" if no other tensor shares the storage, "shared" if a view may, "copied" if
            this should be a view of another tensor but is a copy.
    """

    _stack: Tensor
    room: list[int] | None
    aliased: str

    @staticmethod
    def __new__(cls, stack: Tensor, room: list[int] | None = None) -> "Series":
        """Makes a series from its coefficients."""
        series = torch.Tensor._make_wrapper_subclass(
            cls, stack.shape[1:], strides=stack.stride()[1:], dtype=stack.dtype, device=stack.device
        )
        series._stack, series.room, series.aliased = stack, room, ""
        return series

    @property
    def stack(self) -> Tensor:  # noqa: D102 - see the class
        return self._stack if self.room is None else self._stack[: self.room[0]]

    def write(self, stack: Tensor, operation: str) -> None:
        """Takes other coefficients, in place.

        Raises:
            InputError: If a tensor that shares the storage could not see them.
        """
        stack = stack.to(self.dtype)
        if self.room is None and not self.aliased:
            self._stack = stack.expand(len(stack), *self.shape)
        elif self.aliased == "copied" or len(stack) > len(self._stack):
            raise InputError(
                f"the model writes into a part of a tensor in place ({operation}): build the "
                "tensor by torch.cat or torch.stack"
            )
        else:
            self._stack[: len(stack)].copy_(stack)
            self._stack[len(stack) :].zero_()
            if self.room is not None:
                self.room[0] = max(self.room[0], len(stack))

    def tolist(self) -> Any:
        """Refused: numbers lose their dependence on the input.

        Raises:
            InputError: Always.
        """
        raise _reading("tolist")

    def numpy(self, *, force: bool = False) -> Any:
        """Refused like `tolist`.

        Raises:
            InputError: Always.
        """
        raise _reading("numpy")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Series({len(self.stack)} terms, shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by PyTorch where no `SeriesMode` is active."""
        raise InputError(
            "the model keeps a tensor from an earlier call: compute it anew in forward"
        )


class SeriesMode(TorchDispatchMode):
    """While active, operations on `Series` give `Series` with up to `terms` coefficients.

    Args:
        terms: K + 1 for series up to order K.
        rules: Operation → rule, called with `terms` and the operation's arguments.
    """

    def __init__(self, terms: int, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.terms, self.rules = terms, rules

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by PyTorch in place of every elementary operation."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise InputError(
                f"the model draws random numbers ({name}), so it is no fixed function: put dropout "
                "and the like into evaluation mode"
            )
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Series)]
        if name in FACTORIES:
            return self._writable(func(*tree_map(_value, args), **kwargs))
        if not given:
            return func(*args, **kwargs)
        if func._schema.is_mutable and name.endswith("_"):
            return self._in_place(func, name, args, kwargs)
        if "out" in kwargs:
            raise InputError(
                f"the model gives {name} a tensor for its result (out=): take the result that it "
                "returns"
            )
        rule = self.rules.get(func.overloadpacket)
        if func.is_view and rule is not None:
            return self._view(rule, *args, **kwargs)
        # A series of one term is a constant, and rules see constants as plain tensors.
        args, kwargs = tree_map(_plain_if_constant, (args, kwargs))
        if all(len(series.stack) == 1 for series in given):
            return tree_map(self._writable, func(*args, **kwargs))
        if rule is None:
            return self._composite(func, name, args, kwargs)
        return rule(self.terms, *args, **kwargs)

    def _writable(self, made: Any) -> Any:
        """A constant made by the model, which may later be written to."""
        if not isinstance(made, Tensor) or not made.is_floating_point():
            return made
        stack = made.new_zeros(self.terms, *made.shape)
        stack[0] = made
        return Series(stack, room=[1])

    def _view(self, rule: Rule, base: Series, *args: Any, **kwargs: Any) -> Any:
        """The rule on all coefficients that there is room for, so that views see later writing."""
        result = rule(self.terms, Series(base._stack), *args, **kwargs)
        storage = base._stack.untyped_storage().data_ptr()
        base.aliased = base.aliased or "shared"
        for view in tree_leaves(result):
            view.room = base.room
            shared = view._stack.untyped_storage().data_ptr() == storage
            view.aliased = "shared" if shared and base.aliased == "shared" else "copied"
        return result

    def _composite(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """An operation that PyTorch itself writes in terms of others, or a refusal."""
        if name in READS:
            raise _reading(name)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise InputError(
                f"the operation {name} of the model has no rule for Taylor series: replace it, or "
                f"take the nested engine, up to order {NESTED_MOST}"
            )
        return result

    def _in_place(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        target, *others = args
        if not isinstance(target, Series):
            raise InputError(
                f"the model writes values that depend on its input into a constant tensor ({name}):"
                " build the tensor by torch.cat or torch.stack"
            )
        packet = getattr(aten, name[:-1], None)
        if torch.Tag.inplace_view in func.tags and packet in self.rules:
            # Another shape of the same numbers, which the tensor itself takes on too.
            view = self._view(self.rules[packet], target, *others, **kwargs)
            with no_dispatch():
                func(target, *others, **kwargs)
            target._stack, target.aliased = view._stack, view.aliased
            return target
        function = getattr(packet, func._overloadname, None)
        if function is None:
            raise InputError(
                f"the in-place operation {name} of the model has no rule for Taylor series: use "
                "its out-of-place form"
            )
        with self:
            result = function(target, *others, **kwargs)
        target.write(result.stack if isinstance(result, Series) else result[None], name)
        return target


def _reading(name: str) -> InputError:
    return InputError(
        f"the model reads a number out of a tensor ({name}), whose dependence on the input would "
        "be lost: keep it a tensor"
    )


def _value(leaf: Any) -> Any:
    """The constant term of a series; anything else as it is."""
    return leaf.stack[0] if isinstance(leaf, Series) else leaf


def _plain_if_constant(leaf: Any) -> Any:
    return leaf.stack[0] if isinstance(leaf, Series) and len(leaf.stack) == 1 else leaf
