"""Automatic differentiation against central differences, on the user's own network.

PyTorch has returned wrong higher derivatives without a warning (see `theory.network.SafeNesting`),
and a network may hold an operation with a wrong rule of its own. So every report carries this
check: in float64, on a few examples, each derivative of φ(a) = ℓ(f(x + a v), y) at a = 0 against
the central difference of the derivative one order below.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import first_order, first_order_coupled
from theory.losses import Head, loss
from theory.network import BatchNormMode, Function, evaluating
from theory.taylor import loss_taylor_terms

STEPS = tuple(10.0**-k for k in range(1, 9))


@dataclass(frozen=True)
class SelfCheck:
    """Result of `derivative_self_check`; entry k − 1 belongs to order k.

    Attributes:
        samples: Number of examples.
        errors: ‖autodiff − central difference‖ / ‖central difference‖, over examples.
        steps: Step in a of the central difference that was compared.
        q_dtype_error: Relative error of q in the report's own precision against float64.
    """

    samples: int
    errors: tuple[float, ...]
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

    A step too long crosses kinks or bends, one too short drowns in rounding. The step is therefore
    the one whose difference quotient agrees best with that of the next shorter step; the result of
    automatic differentiation has no say in it.

    Args:
        model: Left untouched.
        x: A few inputs.
        targets: y, one row an example.
        mean: x̄'.
        head: Which loss.
        order: Highest derivative to check.
        batch_norm: As for `theory.network.evaluating`.

    Raises:
        InputError: If the network cannot be copied, or does not compute in float64.
    """
    try:
        exact_model = copy.deepcopy(model).double()
    except RuntimeError as error:
        raise InputError(f"the model cannot be copied to float64 ({error})") from error
    x64, y64, mean64 = x.double(), targets.double(), mean.double()
    measure = first_order if batch_norm == "eval" else first_order_coupled
    errors, steps = [], []
    with evaluating(exact_model, batch_norm) as f:
        if f(x64).dtype != torch.float64:
            raise InputError("the model computes in a fixed precision below float64")
        derivative = q = measure(f, x64, y64, mean64, head).q
        for k in range(1, order + 1):
            if k > 1:
                derivative = _derivative(f, x64, y64, mean64 - x64, k, head)
            quotients = [
                (
                    _derivative(f, x64 + h * (mean64 - x64), y64, mean64 - x64, k - 1, head)
                    - _derivative(f, x64 - h * (mean64 - x64), y64, mean64 - x64, k - 1, head)
                )
                / (2 * h)
                for h in STEPS
            ]
            changes = [_relative(u, v) for u, v in itertools.pairwise(quotients)]
            best = min(range(len(changes)), key=changes.__getitem__)
            errors.append(_relative(derivative, quotients[best]))
            steps.append(STEPS[best])
    with evaluating(model, batch_norm) as f:
        q_own = measure(f, x, targets, mean, head).q.double()
    return SelfCheck(len(x), tuple(errors), tuple(steps), _relative(q_own, q))


def _derivative(f: Function, x: Tensor, y: Tensor, v: Tensor, k: int, head: Head) -> Tensor:
    """k-th derivative of each example's loss along v."""
    if k == 0:
        with torch.no_grad():
            return loss(f(x), y, head)
    return loss_taylor_terms(f, x, y, v, k, head)[k] * math.factorial(k)


def _relative(value: Tensor, reference: Tensor) -> float:
    """Relative distance; absolute where the reference is zero."""
    scale = float(reference.norm())
    return float((value - reference).norm()) / (scale if scale > 0 else 1.0)
