"""Does training on q̂ pull the parameters where training on q would?

A penalty acts through its gradient, so two penalties agree in training when their parameter
gradients point the same way, whatever their values. This compares ∇_θ mean q with ∇_θ mean q̂, and
∇_θ mean |q| with ∇_θ mean |q̂| (MixupE's penalty is |q̂|; Zou, Verma et al., UAI 2023).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import (
    as_rows,
    coupled_abs_q,
    directional_q,
    first_order,
    loss_gradient,
    q_hat,
)
from theory.losses import Head
from theory.network import Function, derivative_rules

Batches = Iterable[tuple[Tensor, Tensor]]
Gradients = tuple[Tensor | None, ...]
Scaled = tuple[float, Gradients]


def gradient_alignment(
    model: nn.Module,
    f: Function,
    batches: Batches,
    mean: Float[Tensor, " *dims"],
    head: Head = "softmax",
    *,
    coupled: bool = False,
    signs: Float[Tensor, "samples 2"] | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
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
        signs: Signs of q and q̂ of all examples, where they are known; found by one vjp otherwise.
        on_batch: Called with the number of examples done.

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
    if coupled:
        pieces = _coupled_penalties(f, batches, mean, head, parameters)
    else:
        pieces = _penalties(f, batches, mean, head, parameters, signs)
    for size, scaled in pieces:
        examples += size
        on_batch(size)
        for total, (factor, gradients) in zip(totals, scaled, strict=True):
            for accumulated, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    accumulated.add_(gradient, alpha=factor)
    layers: dict[str, list[int]] = {"(all)": list(range(len(names)))}
    for k, name in enumerate(names):
        layers.setdefault(name.rpartition(".")[0] or "(model)", []).append(k)
    products = [_inner_products(*(total[k].flatten() for total in totals)) for k in layers["(all)"]]
    rows = []
    for layer, members in layers.items():
        q, both, q_hat_, abs_q, abs_both, abs_q_hat = (
            torch.stack([products[k] for k in members]).sum(0).tolist()
        )
        rows.append(
            {
                "layer": layer,
                "cosine_q": _cosine(both, q, q_hat_),
                "cosine_abs_q": _cosine(abs_both, abs_q, abs_q_hat),
                "norm_q": math.sqrt(q) / examples,
                "norm_q_hat": math.sqrt(q_hat_) / examples,
            }
        )
    return pd.DataFrame(rows)


def _penalties(
    f: Function,
    batches: Batches,
    mean: Tensor,
    head: Head,
    parameters: list[nn.Parameter],
    signs: Tensor | None,
) -> Iterator[tuple[int, list[Scaled]]]:
    """Number of examples and sums over them of ∇q, ∇q̂, ∇|q| and ∇|q̂|, piece by piece.

    Where q and q̂ each have one sign, ∇|q| = ±∇q needs no backward pass of its own. So the examples
    are sorted by their signs first, which saves a second derivative.
    """
    groups: dict[tuple[float, float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    rows, start = 1, 0
    for x, targets in batches:
        rows = max(rows, len(x))
        if signs is None:
            terms = first_order(f, x, targets, mean, head)
            here = torch.stack([terms.q.sign(), terms.q_hat.sign()], 1)
        else:
            here = signs[start : start + len(x)].to(x.device)
            start += len(x)
        for pair in here.unique(dim=0):
            ours = (here == pair).all(1)
            groups[pair[0].item(), pair[1].item()].append((x[ours], targets[ours]))
    for (sign, sign_hat), members in groups.items():
        inputs, labels = (torch.cat(parts) for parts in zip(*members, strict=True))
        for x, targets in zip(inputs.split(rows), labels.split(rows), strict=True):
            with derivative_rules():
                exact, approximate = _differentiable_terms(f, x, targets, mean, head)
                dq = _gradients(exact.sum(), parameters, retain=True)
                dq_hat = _gradients(approximate.sum(), parameters)
            yield len(x), [(1, dq), (1, dq_hat), (sign, dq), (sign_hat, dq_hat)]


def _coupled_penalties(
    f: Function, batches: Batches, mean: Tensor, head: Head, parameters: list[nn.Parameter]
) -> Iterator[tuple[int, list[Scaled]]]:
    """As `_penalties`, for batches that must stay together."""
    for x, targets in batches:
        with derivative_rules():
            exact, approximate = _differentiable_terms(f, x, targets, mean, head)
            signs = directional_q(f, x, targets, mean - x, head).sign()
            gradients = [
                _gradients(exact.sum(), parameters, retain=True),
                _gradients(approximate.sum(), parameters, retain=True),
                _gradients(coupled_abs_q(f, x, targets, mean, signs, head), parameters),
                _gradients(approximate.abs().sum(), parameters),
            ]
        yield len(x), [(1, each) for each in gradients]


def _differentiable_terms(
    f: Function, x: Tensor, targets: Tensor, mean: Tensor, head: Head
) -> tuple[Tensor, Tensor]:
    """q and q̂ with a graph down to the parameters."""
    logits, c = loss_gradient(f, x, targets, head, create_graph=True)
    exact = as_rows(c * (mean - x)).sum(1)
    _refuse_once_differentiable(exact)
    return exact, q_hat(logits, targets, head)


def _gradients(value: Tensor, parameters: list[nn.Parameter], retain: bool = False) -> Gradients:
    return torch.autograd.grad(value, parameters, retain_graph=retain, allow_unused=True)


def _inner_products(q: Tensor, q_hat: Tensor, abs_q: Tensor, abs_q_hat: Tensor) -> Tensor:
    """⟨u, u⟩, ⟨u, v⟩ and ⟨v, v⟩ of both pairs of flat gradients; they add up over parameters."""
    pairs = (q, q), (q, q_hat), (q_hat, q_hat)
    abs_pairs = (abs_q, abs_q), (abs_q, abs_q_hat), (abs_q_hat, abs_q_hat)
    return torch.stack([u @ v for u, v in (*pairs, *abs_pairs)])


def _cosine(product: float, square_u: float, square_v: float) -> float:
    """Cosine from ⟨u, v⟩, ⟨u, u⟩ and ⟨v, v⟩; NaN where a vector is zero."""
    norms = math.sqrt(square_u) * math.sqrt(square_v)
    return product / norms if norms > 0 else math.nan


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
