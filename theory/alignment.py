"""Does training on q̂ pull the parameters where training on q would?

A penalty acts through its gradient, so two penalties agree in training when their parameter
gradients point the same way, whatever their values. This compares ∇_θ mean q with ∇_θ mean q̂, and
∇_θ mean |q| with ∇_θ mean |q̂| (MixupE's penalty is |q̂|; Zou, Verma et al., UAI 2023).
"""

from collections.abc import Iterable, Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import loss_gradient, q_hat
from theory.losses import Head
from theory.network import Function, derivative_rules

Batches = Iterable[tuple[Tensor, Tensor]]


def gradient_alignment(
    model: nn.Module,
    f: Function,
    batches: Batches,
    mean: Float[Tensor, " *dims"],
    head: Head = "softmax",
) -> pd.DataFrame:
    """Cosines between the parameter gradients of the exact and the approximate penalty.

    Exact q is differentiated by a second backward pass, with g − y not held constant. f is read as
    it stands: inside `theory.network.evaluating`, in evaluation mode or with batch statistics.

    Args:
        model: Owner of the parameters; those with `requires_grad` are compared.
        f: The same network as a function.
        batches: (x, targets) batches; gradients are averaged over all examples.
        mean: x̄' = E[x'].
        head: Which loss.

    Returns:
        One row for each module that owns parameters, and a first row "(all)"; columns `layer`,
        `cosine_q`, `cosine_abs_q`, `norm_q`, `norm_q_hat` (the norms of the first pair). A cosine
        is NaN where one of its gradients is zero.

    Raises:
        InputError: If there is nothing to differentiate, or an operation has no second derivative.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the model has no trainable parameters: gradients cannot be compared")
    totals = [[torch.zeros_like(p, dtype=torch.float64) for p in parameters] for _ in range(4)]
    for x, targets in batches:
        for total, gradients in zip(
            totals, _penalty_gradients(f, x, targets, mean, head, parameters), strict=True
        ):
            for accumulated, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    accumulated += gradient
    layers: dict[str, list[int]] = {"(all)": list(range(len(names)))}
    for k, name in enumerate(names):
        layers.setdefault(name.rpartition(".")[0] or "(model)", []).append(k)
    rows = []
    for layer, members in layers.items():
        q, q_hat_, abs_q, abs_q_hat = (
            torch.cat([total[k].flatten() for k in members]) for total in totals
        )
        rows.append(
            {
                "layer": layer,
                "cosine_q": cosine(q, q_hat_),
                "cosine_abs_q": cosine(abs_q, abs_q_hat),
                "norm_q": float(q.norm()),
                "norm_q_hat": float(q_hat_.norm()),
            }
        )
    return pd.DataFrame(rows)


def _penalty_gradients(
    f: Function,
    x: Tensor,
    targets: Tensor,
    mean: Tensor,
    head: Head,
    parameters: list[nn.Parameter],
) -> Iterator[tuple[Tensor | None, ...]]:
    """Sums over a batch of ∇q, ∇q̂, ∇|q| and ∇|q̂|, in this order."""
    with derivative_rules():
        logits, c = loss_gradient(f, x, targets, head, create_graph=True)
        exact = (c * (mean - x)).flatten(1).sum(1)
        approximate = q_hat(logits, targets, head)
        for value, last in (
            (exact, False),
            (approximate, False),
            (exact.abs(), False),
            (approximate.abs(), True),
        ):
            yield torch.autograd.grad(
                value.sum(), parameters, retain_graph=not last, allow_unused=True
            )


def cosine(u: Tensor, v: Tensor) -> float:
    """Cosine of the angle between two flat tensors; NaN where one of them is zero."""
    norms = float(u.norm() * v.norm())
    return float(u @ v) / norms if norms > 0 else float("nan")
