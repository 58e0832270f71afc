"""Value and directional derivative of a network in one pass, differentiable in its parameters.

Examples x and directions v run through the network as one batch of twice the rows. Where a layer is
linear nothing changes, so f(x) and J v cost what f costs on two batches, and one backward pass
through both gives the parameter gradient of anything made of them. PyTorch's own dual numbers
(`torch.autograd.forward_ad`) return a wrong gradient through batch norm by the batch's statistics.

Every other layer has a symmetric Jacobian: elementwise functions, whose Jacobian is diagonal, and
batch norm, whose Jacobian is w/σ (1 − 11ᵀ/m − ẑẑᵀ/m) for each channel. J v is then vᵀJ, which
reverse mode computes, and differentiates once more rightly.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.network import Function, derivative_rules


def value_and_tangent(
    f: Function, x: Float[Tensor, "batch *dims"], direction: Float[Tensor, "batch *dims"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """f(x) and J v for a direction v an example, both with a graph down to the parameters.

    Where f normalises by the batch's statistics, J is the Jacobian of the whole batch, and all
    examples move at once; running statistics are updated once, by x alone.

    Args:
        f: The network as a function of a batch.
        x: Inputs.
        direction: v.

    Raises:
        InputError: If an operation of f has no rule here.
    """
    with torch.enable_grad(), derivative_rules():
        result = f(torch.cat([x, direction]).as_subclass(Stacked))
        if not isinstance(result, Stacked):
            raise InputError("the logits do not depend on the input: the model has no tangent")
        value, tangent = result.as_subclass(Tensor).chunk(2)
    return value, tangent


class Stacked(Tensor):
    """Values in the first half of the rows, their tangents in the second."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by PyTorch in place of every torch function of such a tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in _QUESTIONS:
                return func(*args, **(kwargs or {}))
            rule = _RULES.get(func)
            result = None if rule is None else rule(func, *args, **(kwargs or {}))
            if result is None:
                raise InputError(f"{getattr(func, '__name__', func)} has no rule for tangents")
            return result.as_subclass(cls)


def _rowwise(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """A linear function of each row, the same for all."""
    result = func(x, *args, **kwargs)
    return result if result.ndim > 0 and len(result) == len(x) else None


def _average(
    func: Any, x: Tensor, dim: int | tuple[int, ...] = (), keepdim: bool = False
) -> Tensor | None:
    axes = (dim,) if isinstance(dim, int) else dim
    within_rows = len(axes) > 0 and all(axis % x.ndim > 0 for axis in axes)
    return func(x, axes, keepdim) if within_rows else None


def _flatten(func: Any, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor | None:
    return func(x, start_dim, end_dim) if start_dim > 0 else None


def _narrow(func: Any, x: Tensor, dim: int, start: int, length: int) -> Tensor | None:
    return func(x, dim, start, length) if dim % x.ndim > 0 else None


def _sum(func: Any, x: Any, y: Any) -> Tensor | None:
    """Sum or difference of two networks' parts."""
    both = isinstance(x, Stacked) and isinstance(y, Stacked)
    return func(x, y) if both and x.shape == y.shape else None


def _affine(
    func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    """Convolution or linear layer: the tangents get no bias."""
    result = func(x, weight, None, *args, **kwargs)
    if isinstance(weight, Stacked) or x.ndim < 2 or len(result) != len(x):
        return None
    if bias is None:
        return result
    per_channel = (1, -1, *(1,) * (result.ndim - 2)) if func is not F.linear else (-1,)
    biases = torch.stack([bias, torch.zeros_like(bias)]).to(result.dtype)
    shape = (2, *(1,) * (result.ndim - len(per_channel)), *per_channel)
    return (result.unflatten(0, (2, -1)) + biases.reshape(shape)).flatten(0, 1)


def _symmetric(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """A function with a symmetric Jacobian, whose J v is therefore vᵀJ."""
    if kwargs.pop("inplace", False):
        return None
    value, tangent = x.as_subclass(Tensor).chunk(2)
    if value.dtype in (torch.bfloat16, torch.float16):
        value, tangent = value.float(), tangent.float()
    if not value.requires_grad:
        value = value.detach().requires_grad_()
    result = func(value, *args, **kwargs)
    (moved,) = torch.autograd.grad(result, value, tangent.to(result.dtype), create_graph=True)
    return torch.cat([result, moved.to(result.dtype)])


def _relu(func: Any, x: Tensor, inplace: bool = False) -> Tensor | None:
    """As `_symmetric`, in one product over all rows."""
    if inplace:
        return None
    rows = x.as_subclass(Tensor).unflatten(0, (2, -1))
    return (rows * (rows[0] > 0)).flatten(0, 1)


def _max_pool(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The tangents follow the values that are chosen."""
    value, tangent = x.as_subclass(Tensor).chunk(2)
    kwargs.pop("return_indices", None)
    result, places = F.max_pool2d_with_indices(value, *args, **kwargs)
    moved = tangent.flatten(2).gather(2, places.flatten(2)).reshape(result.shape)
    return torch.cat([result, moved])


_QUESTIONS = {
    *(getattr(Tensor, name).__get__
      for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda")),
    Tensor.size, Tensor.dim, Tensor.__len__, Tensor.__repr__, Tensor.is_floating_point,
}  # fmt: skip
_RULES: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), _affine),
    **dict.fromkeys((torch.mean, Tensor.mean, torch.sum, Tensor.sum), _average),
    **dict.fromkeys((torch.flatten, Tensor.flatten), _flatten),
    **dict.fromkeys((torch.narrow, Tensor.narrow), _narrow),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.add_, torch.sub, Tensor.sub,
                     Tensor.__sub__), _sum),
    **dict.fromkeys((Tensor.float, Tensor.double, Tensor.contiguous), _rowwise),
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), _rowwise),
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((F.batch_norm, F.dropout, torch.tanh, Tensor.tanh, torch.sigmoid,
                     Tensor.sigmoid, F.softplus, F.silu, F.gelu, F.elu,
                     F.leaky_relu), _symmetric),
    **dict.fromkeys((F.max_pool2d, F.max_pool2d_with_indices), _max_pool),
}  # fmt: skip
