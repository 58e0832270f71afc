"""Does training on q̂ pull the parameters where training on q would?

A penalty acts through its gradient, so two penalties agree in training when their parameter
gradients point the same way, whatever their values. This compares ∇_θ mean q with ∇_θ mean q̂, and
∇_θ mean |q| with ∇_θ mean |q̂| (MixupE's penalty is |q̂|; Zou, Verma et al., UAI 2023).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import first_order_coupled, loss_gradient, q_hat
from theory.losses import Head, probabilities
from theory.network import Function, derivative_rules

Batches = Iterable[tuple[Tensor, Tensor]]


def gradient_alignment(
    model: nn.Module,
    f: Function,
    batches: Batches,
    mean: Float[Tensor, " *dims"],
    head: Head = "softmax",
    *,
    coupled: bool = False,
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
        coupled: Whether f normalises by batch statistics, so that one vjp would mix the rows of q.

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
    examples = 0
    for x, targets in batches:
        examples += len(x)
        for total, gradients in zip(
            totals, _penalty_gradients(f, x, targets, mean, head, coupled, parameters), strict=True
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
            torch.cat([total[k].flatten() for k in members]) / examples for total in totals
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
    coupled: bool,
    parameters: list[nn.Parameter],
) -> Iterator[tuple[Tensor | None, ...]]:
    """Sums over a batch of ∇q, ∇q̂, ∇|q| and ∇|q̂|, in this order."""
    with derivative_rules():
        logits, c = loss_gradient(f, x, targets, head, create_graph=True)
        exact = (c * (mean - x)).flatten(1).sum(1)
        exact_abs = _coupled_abs_q(f, x, targets, mean, head) if coupled else exact.abs()
        _refuse_once_differentiable(exact)
        approximate = q_hat(logits, targets, head)
        for value, last in (
            (exact, False),
            (approximate, False),
            (exact_abs, False),
            (approximate.abs(), True),
        ):
            yield torch.autograd.grad(
                value.sum(), parameters, retain_graph=not last, allow_unused=True
            )


def _coupled_abs_q(f: Function, x: Tensor, targets: Tensor, mean: Tensor, head: Head) -> Tensor:
    """Σ|q| over a coupled batch, whose q are no rows of one vjp, by the vjp of sign(q) (g − y).

    So it takes no derivative of a jvp and no third derivative: PyTorch returns both wrong, without
    a warning, through train-mode batch norm (see `theory.network.SafeNesting`).
    """
    signs = first_order_coupled(f, x, targets, mean, head).q.sign()
    x = x.detach().requires_grad_()
    logits = f(x)
    residual = signs[:, None] * (probabilities(logits, head) - targets)
    (c,) = torch.autograd.grad(logits, x, residual, create_graph=True)
    return (c * (mean - x)).sum()


def _refuse_once_differentiable(value: Tensor) -> None:
    """Raises where `torch.autograd.grad` would leave out a missing second derivative silently."""
    seen: set[Any] = set()
    nodes: list[Any] = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "Error":
            raise InputError(
                "an operation of the model is marked once_differentiable and has no second "
                "derivative: replace it by differentiable ones"
            )
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)


def cosine(u: Tensor, v: Tensor) -> float:
    """Cosine of the angle between two flat tensors; NaN where one of them is zero."""
    norms = float(u.norm() * v.norm())
    return float(u @ v) / norms if norms > 0 else float("nan")
