"""The first-order term of Mixup's regulariser, and what MixupE puts in its place.

To first order in a = 1 − λ the regulariser of Theorem 1 is D¹ = E[a]/n Σ_i q(x_i) with

    q(x) = (g − y)ᵀ J(x) (x̄' − x),      x̄' = E[x'],  J = ∂f/∂x,  g = ∇h(f(x)),

and MixupE replaces q by q̂ = (y − g)ᵀ f(x), arguing that x̄' = 0 (normalised data) and J(x) x ≈ f(x)
(ReLU networks); Zou, Verma et al., "MixupE", UAI 2023, equation (1). The error splits exactly, with
no approximation, into one gap for each argument:

    q − q̂  =  (g − y)ᵀ J x̄'            the normalisation gap, zero where x̄' = 0
            +  (g − y)ᵀ (f − J x)        the homogeneity gap, zero where f(x) = J(x) x

Two exact routes lead to q: one jvp in the direction x̄' − x (`directional_q`), or one vjp
c = Jᵀ(g − y) and inner products with it. The vjp serves every direction at once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.losses import Head, loss, probabilities
from theory.network import Function, derivative_rules


@dataclass(frozen=True)
class FirstOrder:
    """First-order quantities of a batch, each of shape (batch,), in units of the loss (nats).

    Attributes:
        loss: ℓ(x, y) on the clean example.
        q: Directional derivative of the loss from x towards x̄', exactly.
        q_hat: (y − g)ᵀ f, MixupE's approximation to q.
        normalization_gap: (g − y)ᵀ J x̄'.
        homogeneity_gap: (g − y)ᵀ (f − J x). The two gaps sum to q − q̂.
    """

    loss: Float[Tensor, " batch"]
    q: Float[Tensor, " batch"]
    q_hat: Float[Tensor, " batch"]
    normalization_gap: Float[Tensor, " batch"]
    homogeneity_gap: Float[Tensor, " batch"]


def as_rows(x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch size"]:
    """All numbers of an example in one row, also where an example is a single number."""
    return x[:, None].flatten(1)


def q_hat(
    logits: Float[Tensor, "batch classes"],
    targets: Float[Tensor, "batch classes"],
    head: Head = "softmax",
) -> Float[Tensor, " batch"]:
    """MixupE's approximation q̂ = (y − g)ᵀ f to q; Zou, Verma et al., UAI 2023, equation (1)."""
    return ((targets - probabilities(logits, head)) * logits).sum(-1)


def loss_gradient(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    head: Head = "softmax",
    *,
    create_graph: bool = False,
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch *dims"]]:
    """Logits f(x) and c = Jᵀ(g − y), the gradient of each example's loss with respect to it.

    One forward and one backward pass. Row i belongs to example i alone as long as f treats
    examples independently (evaluation mode).

    Args:
        f: The network as a function of a batch; see `theory.network.evaluating`.
        x: Inputs of any shape behind the batch axis.
        targets: y, rows as from `theory.losses.as_targets`.
        head: Which loss.
        create_graph: Keep the result differentiable with respect to the parameters.

    Raises:
        InputError: If the logits do not depend on x by operations with a derivative rule.
    """
    with derivative_rules(), torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = f(x)
        residual = probabilities(logits, head) - targets
        (c,) = torch.autograd.grad(logits, x, residual, create_graph=create_graph)
    return logits, c


def first_order(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    mean: Float[Tensor, " *dims"],
    head: Head = "softmax",
    *,
    create_graph: bool = False,
) -> FirstOrder:
    """q towards the data mean, q̂ and both gaps, from one forward and one backward pass.

    Args:
        f: The network as a function that treats the examples of a batch independently.
        x: Inputs.
        targets: y, one row an example.
        mean: x̄' = E[x'], one example's shape.
        head: Which loss.
        create_graph: Keep q and q̂ differentiable with respect to the parameters.

    Raises:
        InputError: If an operation of f has no derivative rule.
    """
    logits, c = loss_gradient(f, x, targets, head, create_graph=create_graph)
    along_mean = as_rows(c * mean).sum(1)
    along_x = as_rows(c * x).sum(1)
    terms = _terms(logits, targets, head, along_mean, along_x)
    return terms if create_graph else FirstOrder(*(t.detach() for t in vars(terms).values()))


def first_order_coupled(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    mean: Float[Tensor, " *dims"],
    head: Head = "softmax",
) -> FirstOrder:
    """As `first_order`, for an f whose examples interact: batch norm with batch statistics.

    The Jacobian is then that of the whole batch, and every example moves towards x̄' at once.
    A vjp would mix the rows, so the two directions x̄' and x take one jvp each.
    """

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        with derivative_rules():
            return torch.func.jvp(f, (x,), (direction.contiguous(),))[:2]

    with torch.no_grad():
        logits, j_mean = along(mean.expand_as(x))
        _, j_x = along(x)
        residual = probabilities(logits, head) - targets
        along_mean, along_x = (residual * j_mean).sum(1), (residual * j_x).sum(1)
        return _terms(logits, targets, head, along_mean, along_x)


def _terms(
    logits: Tensor, targets: Tensor, head: Head, along_mean: Tensor, along_x: Tensor
) -> FirstOrder:
    """From (g − y)ᵀ J x̄' and (g − y)ᵀ J x."""
    estimate = q_hat(logits, targets, head)
    return FirstOrder(
        loss=loss(logits, targets, head),
        q=along_mean - along_x,
        q_hat=estimate,
        normalization_gap=along_mean,
        homogeneity_gap=-estimate - along_x,
    )


def directional_q(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    direction: Float[Tensor, "batch *dims"],
    head: Head = "softmax",
) -> Float[Tensor, " batch"]:
    """(g − y)ᵀ J v, the derivative of each example's loss along its own direction v, by one jvp."""
    if direction.shape != x.shape:
        raise InputError(
            f"directions have shape {tuple(direction.shape)} and inputs {tuple(x.shape)}: pass one "
            "direction an example"
        )
    with torch.no_grad(), derivative_rules():
        logits, tangent = torch.func.jvp(f, (x,), (direction,))[:2]
        return ((probabilities(logits, head) - targets) * tangent).sum(1)


def coupled_abs_q(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    mean: Float[Tensor, " *dims"],
    signs: Float[Tensor, " batch"] | None = None,
    head: Head = "softmax",
) -> Float[Tensor, ""]:
    """Σ|q| over a batch whose examples interact, differentiable with respect to the parameters.

    Its q are no rows of one vjp, but their signed sum is an inner product with one:
    Σ s_i q_i = ⟨Jᵀ(s(g − y)), x̄' − x⟩. So no derivative of a jvp and no third derivative is taken:
    PyTorch returns both wrong, without a warning, through train-mode batch norm (see
    `theory.network.SafeNesting`).

    Args:
        f: The network as a function of a batch; one forward pass is made.
        x: Inputs.
        targets: y, one row an example.
        mean: x̄' = E[x'].
        signs: Signs of q if they are known, by `directional_q` in the direction x̄' − x. If not,
            they come from the same forward pass: J v is the derivative of ⟨Jᵀw, v⟩ in w. That is
            slower than a jvp, but works under autocast and where a jvp has no rule.
        head: Which loss.

    Raises:
        InputError: If an operation of f has no derivative rule.
    """
    with derivative_rules(), torch.enable_grad():
        x = x.detach().requires_grad_()
        direction = mean - x.detach()
        logits = f(x)
        residual = probabilities(logits, head) - targets
        if signs is None:
            w = torch.zeros_like(logits, requires_grad=True)
            (c,) = torch.autograd.grad(logits, x, w, create_graph=True)
            (tangent,) = torch.autograd.grad(c, w, direction, retain_graph=True)
            signs = (residual.detach() * tangent).sum(1).sign()
        (c,) = torch.autograd.grad(logits, x, signs[:, None] * residual, create_graph=True)
    return (c * direction).sum()


def pairwise_q(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    partners: Float[Tensor, "partners *dims"],
    head: Head = "softmax",
) -> Float[Tensor, "batch partners"]:
    """(g_i − y_i)ᵀ J(x_i)(x'_j − x_i) for every example i and partner j at once.

    One vjp an example and one matrix product, instead of a jvp for each of the pairs.
    """
    _, c = loss_gradient(f, x, targets, head)
    return as_rows(c) @ as_rows(partners).T - as_rows(c * x).sum(1, keepdim=True)
