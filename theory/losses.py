"""The losses of Mixup's theory, h(f) − yᵀf, as functions of logits.

With logits f = f_θ(x) ∈ R^C and targets y, the loss of an example is ℓ = h(f) − yᵀf
(Zou, Verma et al., "MixupE", UAI 2023, section on implicit regularisation), where

    softmax head:  h(f) = log Σ_c exp(f_c),       y on the simplex,   ℓ = cross-entropy
    sigmoid head:  h(f) = Σ_c log(1 + exp(f_c)),  y in [0, 1]^C,      ℓ = Σ_c binary cross-entropy

h is the log-partition function of an exponential family, so g = ∇h is the predicted mean (the
class probabilities) and H = ∇²h its covariance. ℓ is affine in y: that is what makes Mixup's
mixed labels equal in expectation to relabelled ones (`theory.mixing`).

Everything here is differentiable to any order by autograd and by nested `torch.func.jvp`.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.errors import InputError

Head = Literal["softmax", "sigmoid"]
HEADS: tuple[Head, ...] = get_args(Head)


def _check_head(head: str) -> None:
    if head not in HEADS:
        raise InputError(f"unknown head {head!r}: use one of {', '.join(HEADS)}")


def _softplus(z: Tensor) -> Tensor:
    # Above its threshold F.softplus returns z: at 20, the default, that is an error of 2e-9, at 40
    # less than float64's rounding. The rules of logaddexp give NaN from second order on at -710.
    return torch.nn.functional.softplus(z, threshold=40.0)


def log_partition(
    logits: Float[Tensor, "batch classes"], head: Head = "softmax"
) -> Float[Tensor, " batch"]:
    """h(f) for each row of logits, without overflow at any finite logit."""
    _check_head(head)
    return logits.logsumexp(-1) if head == "softmax" else _softplus(logits).sum(-1)


def probabilities(
    logits: Float[Tensor, "batch classes"], head: Head = "softmax"
) -> Float[Tensor, "batch classes"]:
    """g = ∇h, the predicted probabilities: softmax, or a sigmoid for each logit."""
    _check_head(head)
    return logits.softmax(-1) if head == "softmax" else logits.sigmoid()


def loss_hessian(
    logits: Float[Tensor, "batch classes"], head: Head = "softmax"
) -> Float[Tensor, "batch classes classes"]:
    """H = ∇²h: diag(g) − g gᵀ (softmax) or diag(g(1 − g)) (sigmoid). It does not depend on y."""
    g = probabilities(logits, head)
    if head == "sigmoid":
        # σ(z)σ(−z) keeps its relative accuracy where 1 − σ(z) would round to zero.
        return torch.diag_embed(g * (-logits).sigmoid())
    # Rows sum to zero, which gives the diagonal without a 1 − g that could round to zero.
    others = 1 - torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    products = g[:, :, None] * g[:, None, :] * others
    return torch.diag_embed(products.sum(2)) - products


def loss_hessian_factor(
    logits: Float[Tensor, "batch classes"], head: Head = "softmax"
) -> Float[Tensor, "batch classes classes"]:
    """L with H = L Lᵀ: columns √g_c (e_c − g) (softmax) or √(g_c(1 − g_c)) e_c (sigmoid)."""
    g = probabilities(logits, head)
    if head == "sigmoid":
        return torch.diag_embed((g * (-logits).sigmoid()).sqrt())
    columns = torch.eye(g.shape[1], dtype=g.dtype, device=g.device) - g[:, :, None]
    return columns * g.sqrt()[:, None, :]


def loss(
    logits: Float[Tensor, "batch classes"],
    targets: Float[Tensor, "batch classes"],
    head: Head = "softmax",
) -> Float[Tensor, " batch"]:
    """ℓ = h(f) − yᵀf of each example, in a form that cancels nothing.

    Written out, h − yᵀf subtracts two numbers of the logits' size; −Σ y log g does not. The two
    are equal because the rows of `targets` sum to one (softmax), or term by term (sigmoid).

    Args:
        logits: f, one row an example.
        targets: y, probability rows (softmax) or values in [0, 1] (sigmoid); see `as_targets`.
        head: Which h.
    """
    _check_head(head)
    if head == "softmax":
        return -(targets * logits.log_softmax(-1)).sum(-1)
    return (targets * _softplus(-logits) + (1 - targets) * _softplus(logits)).sum(-1)


def as_targets(
    labels: Int[Tensor, " batch"] | Float[Tensor, " batch"] | Float[Tensor, "batch classes"],
    num_classes: int,
    head: Head = "softmax",
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch classes"]:
    """Targets y as rows of `num_classes` numbers, from whatever form the labels have.

    Args:
        labels: Class indices (integers), probability rows (floats of shape (batch, classes)), or
            for a single sigmoid logit also a plain vector of numbers in [0, 1].
        num_classes: Number of logits C.
        head: Rows must sum to one for "softmax" and only lie in [0, 1] for "sigmoid".
        dtype: Floating type of the result.

    Raises:
        InputError: If indices lie outside 0 … C − 1, or rows are no probabilities.
    """
    _check_head(head)
    if head == "softmax" and num_classes == 1:
        raise InputError("a model with a single logit needs the sigmoid head: pass head='sigmoid'")
    if not labels.is_floating_point():
        if labels.ndim != 1:
            raise InputError(
                f"integer labels have shape {tuple(labels.shape)}: pass one index an example"
            )
        top = max(num_classes, 2)  # a single logit tells two classes apart
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < top:
            raise InputError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, outside "
                f"0…{top - 1}: the model has {num_classes} logits"
            )
        if num_classes == 1:
            return labels[:, None].to(dtype)
        return torch.nn.functional.one_hot(labels.long(), num_classes).to(dtype)
    rows = labels[:, None] if labels.ndim == 1 and num_classes == 1 else labels
    if rows.ndim != 2 or rows.shape[1] != num_classes:
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}: pass integer class "
            f"indices or probability rows of {num_classes} columns, one for each logit"
        )
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        raise InputError("probability rows hold values outside [0, 1] or NaN: normalise the labels")
    sums = rows.sum(1, keepdim=True, dtype=torch.promote_types(rows.dtype, torch.float32))
    rounding = torch.finfo(rows.dtype).eps  # of the rows' entries, in half precision above 1e-4
    if head == "softmax" and not torch.allclose(sums, sums.new_ones(()), atol=max(1e-4, rounding)):
        raise InputError(
            "probability rows do not sum to one: normalise them, or pass head='sigmoid'"
        )
    if head == "softmax" and rounding > 1e-4:
        rows = rows / sums
    return rows.to(dtype)
