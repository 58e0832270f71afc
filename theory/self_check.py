"""Automatic differentiation against central differences, on the user's own network.

PyTorch has returned wrong higher derivatives without a warning (see `theory.network.SafeNesting`),
and a network may hold an operation with a wrong rule of its own. So every report carries this
check: in float64, on a few examples, each derivative of φ(a) = ℓ(f(x + a v), y) at a = 0 against
the central difference of the derivative one order below.

A piecewise smooth network has no derivative where an example sits on a kink: max-pooling over a
flat background ties, a dead ReLU gets exactly zero. Automatic differentiation then returns one of
several subgradients. Such examples are found by their second difference, counted, and left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import first_order, first_order_coupled
from theory.losses import Head, probabilities
from theory.network import BatchNormMode, Function, copy_in, evaluating
from theory.taylor import loss_taylor_terms

MOST = 3
STEPS = tuple(10.0**-k for k in range(1, 10))
_SHAKES = (1e-14, 3e-14, 7e-14, 1e-13)  # too short to show anything but rounding


@dataclass(frozen=True)
class SelfCheck:
    """Result of `derivative_self_check`; entry k − 1 belongs to order k.

    Attributes:
        samples: Number of examples.
        errors: ‖autodiff − central difference‖ / ‖central difference‖, over examples off kinks;
            NaN if there is none.
        kinks: Number of examples on a kink.
        steps: Step in a of the central differences that were compared, the median over examples.
        q_dtype_error: Relative error of q in the report's own precision against float64.
    """

    samples: int
    errors: tuple[float, ...]
    kinks: tuple[int, ...]
    steps: tuple[float, ...]
    q_dtype_error: float


def derivative_self_check(
    model: nn.Module,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    mean: Float[Tensor, " *dims"],
    *,
    head: Head = "softmax",
    order: int = 1,
    batch_norm: BatchNormMode = "eval",
) -> SelfCheck:
    """Compares derivatives along v = x̄' − x with central differences, on a float64 copy.

    A step too long crosses kinks or bends, one too short drowns in rounding. Each example's step is
    therefore the one whose difference quotient agrees best with those of both neighbours; the
    result of automatic differentiation has no say in it.

    Args:
        model: Left untouched.
        x: A few inputs.
        targets: y, one row an example.
        mean: x̄'.
        head: Which loss.
        order: Highest derivative to check; those above the third are left out, because differences
            of such small numbers show nothing but rounding.
        batch_norm: As for `theory.network.evaluating`.

    Raises:
        InputError: If the network cannot be copied, or does not compute in float64.
    """
    exact_model = copy_in(model, torch.float64)
    x64, y64, mean64 = x.double(), targets.double(), mean.double()
    measure = first_order if batch_norm == "eval" else first_order_coupled
    errors, kinks, steps = [], [], []
    with evaluating(exact_model, batch_norm) as f:
        if f(x64).dtype != torch.float64:
            raise InputError("the model computes in a fixed precision below float64")
        v = mean64 - x64
        derivative = q = measure(f, x64, y64, mean64, head).q
        with torch.no_grad():
            residual = probabilities(f(x64), head) - y64
        for k in range(1, min(order, MOST) + 1):
            if k > 1:
                derivative = _derivative(f, x64, y64, v, k, head)

            def lower(a: float, k: int = k) -> Tensor:
                if k == 1:  # (g − y)ᵀ f in place of φ: same slope, and less to cancel
                    with torch.no_grad():
                        return residual * f(x64 + a * v)
                return _derivative(f, x64 + a * v, y64, v, k - 1, head)[:, None]

            step, quotient, on_kink = _central_difference(lower)
            smooth = ~on_kink
            errors.append(
                _relative(derivative[smooth], quotient[smooth]) if smooth.any() else math.nan
            )
            kinks.append(int(on_kink.sum()))
            steps.append(float(step.median()))
    with evaluating(model, batch_norm) as f:
        q_own = measure(f, x, targets, mean, head).q.double()
    return SelfCheck(len(x), tuple(errors), tuple(kinks), tuple(steps), _relative(q_own, q))


def _central_difference(curve: Callable[[float], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Each example's step, its difference quotient at a = 0, and whether it sits on a kink.

    The curve gives rows (batch, parts) whose sums over parts are differentiated.

    With D₊ and D₋ the one-sided quotients, D₊ − D₋ shrinks like the step where the curve is
    smooth, stays where it has a kink, and grows as the step shrinks where it is rounding; the
    shortest step at which it stands clear of rounding decides. A kink a little way off vanishes at
    a shorter step that could still have shown it. How far rounding goes is measured: a derivative
    of a network with large weights may carry thousands of units in the last place.
    """
    middle = curve(0.0)
    steps = torch.tensor(STEPS, dtype=middle.dtype, device=middle.device)[:, None]
    up, down = (torch.stack([curve(sign * h) for h in STEPS]) for sign in (1.0, -1.0))
    quotients = (up - down).sum(2) / (2 * steps)
    changes = (quotients[1:] - quotients[:-1]).abs()
    best = 1 + torch.maximum(changes[1:], changes[:-1]).argmin(0, keepdim=True)

    jumps = ((up - 2 * middle + down).sum(2) / steps).abs()
    eps = torch.finfo(middle.dtype).eps
    shaken = torch.stack([curve(h) - 2 * middle + curve(-h) for h in _SHAKES])
    noise = shaken.abs().sum(2).amax(0)
    rounding = torch.maximum(20 * eps * middle.abs().sum(1).amax(), 10 * noise) / steps
    clear = jumps > rounding
    # Index of the last clear step, at least 1 so that a longer one stands before it.
    last = (clear * torch.arange(len(STEPS), device=steps.device)[:, None]).amax(0).clamp(min=1)
    at, longer, shorter = (last + k for k in (0, -1, 1))
    jump = jumps.gather(0, at[None])[0]
    before = jumps.gather(0, longer[None])[0]
    stays = (0.5 * before < jump) & (jump < 2 * before)
    bound = torch.cat([rounding, torch.full_like(rounding[:1], torch.inf)])
    hidden = bound.gather(0, shorter[None])[0] > 0.5 * jump
    on_kink = clear.any(0) & stays & hidden
    return steps[best[0], 0], quotients.gather(0, best)[0], on_kink


def _derivative(f: Function, x: Tensor, y: Tensor, v: Tensor, k: int, head: Head) -> Tensor:
    """k-th derivative of each example's loss along v."""
    return loss_taylor_terms(f, x, y, v, k, head)[k] * math.factorial(k)


def _relative(value: Tensor, reference: Tensor) -> float:
    """Relative distance; absolute where the reference is zero."""
    scale = float(reference.norm())
    return float((value - reference).norm()) / (scale if scale > 0 else 1.0)
