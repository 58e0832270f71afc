"""Taylor series of a network and of its loss along a direction.

For an example x and a direction v, the network on the line is a ↦ f(x + a v), and its loss is
φ(a) = h(f(x + a v)) − yᵀ f(x + a v). Theorem 1 (Zou, Verma et al., "MixupE", UAI 2023) expands
both around a = 0; the terms returned here are already divided by k!, so that

    f(x + a v) = Σ_{k ≤ K} taylor_terms[k] a^k + o(a^K).

Where f is piecewise smooth (ReLU) the series is that of the piece that x lies on.

Two engines give the same numbers. "series" propagates truncated power series through the network
(`theory.series`): its cost grows like K² in elementary functions, like K in linear layers, and not
at all where f is affine. "nested" takes one jvp of another for every order, which is the definition
spelled out; its cost grows exponentially.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.losses import Head, log_partition, loss
from theory.network import Function, SafeNesting, derivative_rules
from theory.series import NESTED_MOST, RULES, Series, SeriesMode

Engine = Literal["series", "nested"]


def taylor_terms(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    direction: Float[Tensor, "batch *dims"],
    order: int,
    engine: Engine = "series",
) -> Float[Tensor, "terms batch classes"]:
    """Coefficients of a ↦ f(x + a v) at a = 0, up to and with a^order.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        direction: v, one for each input.
        order: K ≥ 0.
        engine: "series", or "nested" for the readable reference up to order 4.

    Returns:
        K + 1 terms, the k-th being 1/k! ∂^k f(x + a v)/∂a^k.

    Raises:
        InputError: If the order is negative, or too high for the engine or the precision; if an
            operation of f has no rule; or if the order exceeds one and f normalises by batch
            statistics.
    """
    return _terms(f, lambda logits: logits, x, direction, order, engine)


def loss_taylor_terms(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    direction: Float[Tensor, "batch *dims"],
    order: int,
    head: Head = "softmax",
    engine: Engine = "series",
) -> Float[Tensor, "terms batch"]:
    """Coefficients of φ(a) = ℓ(f(x + a v), y) at a = 0; φ's first is q for v = x̄' − x.

    Arguments, errors and scaling as for `taylor_terms`; the result has one column an example.
    """
    return _terms(f, lambda logits: loss(logits, targets, head), x, direction, order, engine)


def loss_terms(
    logit_terms: Float[Tensor, "some batch classes"],
    targets: Float[Tensor, "batch classes"] | None,
    order: int,
    head: Head = "softmax",
) -> Float[Tensor, "terms batch"]:
    """Coefficients of ℓ(f(a), y) = h(f(a)) − yᵀf(a), or of h alone, from those of the logits f(a).

    Args:
        logit_terms: Coefficients of f(a); those that are not given are zero.
        targets: y, or None for h alone.
        order: Highest order of the result.
        head: Which loss.
    """

    def measure(logits: Tensor) -> Tensor:
        return log_partition(logits, head) if targets is None else loss(logits, targets, head)

    return _through(measure, logit_terms, order)


def _terms(
    f: Function,
    measure: Callable[[Tensor], Tensor],
    x: Tensor,
    direction: Tensor,
    order: int,
    engine: Engine,
) -> Tensor:
    if order < 0:
        raise InputError(f"the order of a Taylor series is {order}: it cannot be negative")
    if direction.shape != x.shape:
        raise InputError(
            f"directions have shape {tuple(direction.shape)} and inputs {tuple(x.shape)}: pass one "
            "direction an example"
        )
    if engine not in get_args(Engine):
        raise InputError(f"unknown engine {engine!r}: use one of {', '.join(get_args(Engine))}")
    if engine == "nested":
        terms = _nested(lambda a: measure(f(x + a * direction)), x, order)
    else:
        terms = _through(lambda a: measure(f(a)), torch.stack([x, direction]), order)
    bad = [k for k in range(1, order + 1) if not bool(torch.isfinite(terms[k]).all())]
    if bad and bool(torch.isfinite(terms[0]).all()):
        raise InputError(
            f"Taylor terms of order {bad[0]} and above are not finite in "
            f"{str(x.dtype).removeprefix('torch.')}: lower the order, take float64, or look for a "
            "root or a logarithm at zero in the model"
        )
    return terms


def _through(function: Function, terms: Tensor, order: int) -> Tensor:
    """The coefficients of function(Σ terms_k a^k), zeros included."""
    # In inference mode whole layers would arrive at the dispatcher, not what they are made of.
    with torch.inference_mode(False), torch.no_grad():
        start = Series(terms[: order + 1].clone())  # which the function may write to
        with SeriesMode(order + 1, RULES):
            result = function(start)
    # A result that is no series does not depend on the input on this piece.
    known = result.stack if isinstance(result, Series) else result.detach()[None]
    missing = known.new_zeros(order + 1 - len(known), *known.shape[1:])
    return torch.cat([known, missing])


def _nested(curve: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    if order > NESTED_MOST:
        raise InputError(
            f"order {order} by nested jvp would take about {4**order} forward passes: use "
            "engine='series'"
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
