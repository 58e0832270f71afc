"""Taylor series of a network and of its loss along a direction.

For an example x and a direction v, the network on the line is a ↦ f(x + a v), and its loss is
φ(a) = h(f(x + a v)) − yᵀ f(x + a v). Theorem 1 (Zou, Verma et al., "MixupE", UAI 2023) expands
both around a = 0; the terms returned here are already divided by k!, so that

    f(x + a v) = Σ_{k ≤ K} taylor_terms[k] a^k + o(a^K).

This is the readable reference: one jvp nested in another for every order, whose cost grows
exponentially with the order. Where f is piecewise smooth (ReLU) the series is that of the piece
that x lies on.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.losses import Head, loss
from theory.network import Function, SafeNesting, derivative_rules


def taylor_terms(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    direction: Float[Tensor, "batch *dims"],
    order: int,
) -> Float[Tensor, "terms batch classes"]:
    """Coefficients of a ↦ f(x + a v) at a = 0, up to and with a^order.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        direction: v, one for each input.
        order: K ≥ 0.

    Returns:
        K + 1 terms, the k-th being 1/k! ∂^k f(x + a v)/∂a^k.

    Raises:
        InputError: If the order is negative, an operation of f has no derivative rule, or the
            order exceeds one and f normalises by batch statistics.
    """
    return _terms(lambda a: f(x + a * direction), x, direction, order)


def loss_taylor_terms(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    direction: Float[Tensor, "batch *dims"],
    order: int,
    head: Head = "softmax",
) -> Float[Tensor, "terms batch"]:
    """Coefficients of φ(a) = ℓ(f(x + a v), y) at a = 0; φ's first is q for v = x̄' − x.

    Arguments, errors and scaling as for `taylor_terms`; the result has one column an example.
    """
    return _terms(lambda a: loss(f(x + a * direction), targets, head), x, direction, order)


def _terms(curve: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, order: int) -> Tensor:
    if order < 0:
        raise InputError(f"the order of a Taylor series is {order}: it cannot be negative")
    if direction.shape != x.shape:
        raise InputError(
            f"directions have shape {tuple(direction.shape)} and inputs {tuple(x.shape)}: pass one "
            "direction an example"
        )
    start = torch.zeros((), dtype=x.dtype, device=x.device)

    def derivatives(k: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The curve with its first k derivatives, as a function of a."""
        if k == 0:
            return lambda a: (curve(a),)
        lower = derivatives(k - 1)

        def evaluate(a: Tensor) -> tuple[Tensor, ...]:
            values, tangents = torch.func.jvp(lower, (a,), (torch.ones_like(a),))[:2]
            return (*values, tangents[-1])

        return evaluate

    # With gradients off, PyTorch takes SiLU's and Mish's rules from formulas that have none.
    with torch.set_grad_enabled(order > 1), derivative_rules():
        if order < 2:
            values = derivatives(order)(start)
        else:
            with SafeNesting():
                values = derivatives(order)(start)
    return torch.stack([v.detach() / math.factorial(k) for k, v in enumerate(values)])
