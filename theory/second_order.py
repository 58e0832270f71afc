"""The second-order term of Mixup's regulariser, over all partners at once.

To second order in a = 1 − λ, example x contributes ½ E[a²] · mean over x' of φ''(0) along
v = x' − x to the regulariser R of Theorem 1 (Zou, Verma et al., "MixupE", UAI 2023), and

    φ''(0)  =  vᵀJᵀ H J v            Gauss–Newton part: what the loss's own curvature adds
            +  (g − y)ᵀ ∂²f[v, v]    curvature of the network; zero where it is piecewise linear

with J = ∂f/∂x, g = ∇h and H = ∇²h at the logits. Both are quadratic in v, so all that they need of
the partners is S = mean v vᵀ = Cov(x') + (x̄' − x)(x̄' − x)ᵀ. H = L Lᵀ has as many columns as there
are classes C: one vjp a column and products with the centred partners give the first part as
tr(LᵀJ S JᵀL), whatever the number of partners, in memory of (examples × C × one input's size). The
second takes a second derivative along each principal axis of the partners, or random probes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.first_order import as_rows
from theory.losses import Head, loss_hessian_factor, probabilities
from theory.mixing import relabelled_law
from theory.network import Function, derivative_rules
from theory.taylor import taylor_terms


def gauss_newton_term(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    partners: Float[Tensor, "partners *dims"],
    *,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    rows: int = 256,
) -> Float[Tensor, " batch"]:
    """½ E[a²] tr(H J S Jᵀ) of each example, exactly: one forward and C backward passes.

    It never is negative. Of a network that is piecewise linear in x it is the whole second order.

    Args:
        f: The network as a function that treats the examples of a batch independently.
        x: Inputs.
        partners: All x', uniformly weighted.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is not given.
        head: Which loss.
        rows: Partners in one matrix product.

    Returns:
        Nats, in float64.

    Raises:
        InputError: If α or β is not positive, there is no partner, or f has no derivative.
    """
    law, mean = relabelled_law(alpha, beta), _mean(partners)
    with derivative_rules(), torch.enable_grad():
        z = x.detach().requires_grad_()
        logits = f(z)
        columns = loss_hessian_factor(logits.detach(), head).unbind(2)
        # Row (i, c) is the gradient of example i's c-th whitened logit.
        gradients = torch.stack(
            [as_rows(torch.autograd.grad(logits, z, u, retain_graph=True)[0]) for u in columns], 1
        )
    total = torch.einsum("bcd,bd->bc", gradients, as_rows(mean - x)).double().square()
    for piece in partners.split(rows):
        along = gradients @ as_rows(piece - mean).T
        total += along.double().square().sum(2) / len(partners)
    return law.moment(2) / 2 * total.sum(1)


def curvature_term(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    partners: Float[Tensor, "partners *dims"],
    *,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    rows: int = 64,
) -> Float[Tensor, " batch"]:
    """½ E[a²] mean (g − y)ᵀ∂²f[v, v] of each example, exactly.

    One second derivative an example along each principal axis of the partners, whose number is
    their rank, at most min(partners − 1, size of an input), and one along x̄' − x. For more than a
    network can afford there is `estimated_curvature_term`.

    Args:
        f: As for `gauss_newton_term`.
        x: Inputs.
        targets: y, one row an example.
        partners: All x', uniformly weighted.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is not given.
        head: Which loss.
        rows: Inputs in one differentiated pass.

    Returns:
        Nats, in float64.

    Raises:
        InputError: As `gauss_newton_term`.
    """
    law, mean = relabelled_law(alpha, beta), _mean(partners)
    axes = _principal_axes(partners).reshape(-1, *x.shape[1:])
    directions = [(mean - x)[:, None]]
    if len(axes):
        directions.append(axes.expand(len(x), *axes.shape))
    parts = [_bends(f, x, targets, v, head, rows).sum(1) for v in directions]
    return law.moment(2) * sum(parts, torch.zeros_like(parts[0]))


def estimated_curvature_term(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    partners: Float[Tensor, "partners *dims"],
    *,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    probes: int = 16,
    generator: torch.Generator | None = None,
    rows: int = 64,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The same as `curvature_term` by random probes, with its standard error.

    Each probe is a sum of the centred partners with random signs, divided by the root of their
    number: its outer product has Cov(x') as its mean (Hutchinson's estimator; Hutchinson,
    Communications in Statistics 19, 1990). The part along x̄' − x is exact. Examples have probes of
    their own, so the standard error of the examples' mean is √(Σ sem²)/batch.

    `probes` second derivatives are taken an example, at least 2; `generator` is a CPU generator for
    the signs. The other arguments are those of `curvature_term`.

    Returns:
        Estimate and standard error of each example in float64 nats; the estimate is unbiased.

    Raises:
        InputError: If there are fewer than 2 probes, or as `gauss_newton_term`.
    """
    if probes < 2:
        raise InputError(f"probes is {probes}: a standard error needs at least 2")
    law, mean = relabelled_law(alpha, beta), _mean(partners)
    count = len(x) * probes
    directions = x.new_zeros(count, x[0].numel())
    for piece in partners.split(256):
        signs = 2.0 * torch.randint(2, (count, len(piece)), generator=generator) - 1
        directions += signs.to(x) @ as_rows(piece - mean) / len(partners) ** 0.5
    directions = directions.reshape(len(x), probes, *x.shape[1:])
    values = _bends(f, x, targets, directions, head, rows)
    exact = _bends(f, x, targets, (mean - x)[:, None], head, rows)[:, 0]
    moment = law.moment(2)
    return moment * (exact + values.mean(1)), moment * values.std(1) / probes**0.5


def _mean(partners: Tensor) -> Tensor:
    """x̄', added up in float64."""
    if len(partners) == 0:
        raise InputError("there are no partners: pass at least one")
    return partners.mean(0, dtype=torch.float64).to(partners.dtype)


def _principal_axes(partners: Tensor, rows: int = 256) -> Tensor:
    """Vectors u_k, one a row, with Σ_k u_k u_kᵀ = Cov(x'), as few as the precision can tell apart.

    From the smaller of the two Gram matrices of the centred partners.
    """
    n, mean = len(partners), _mean(partners)
    size = partners[0].numel()
    wide = n <= size
    gram = torch.zeros(min(n, size), min(n, size), dtype=torch.float64, device=partners.device)
    if wide:
        centred = (partners - mean).flatten(1).double() / n**0.5
        gram = centred @ centred.T
    else:
        for piece in partners.split(rows):
            centred = as_rows(piece - mean).double() / n**0.5
            gram += centred.T @ centred
    values, vectors = torch.linalg.eigh(gram)
    kept = values > torch.finfo(partners.dtype).eps * values[-1].clamp(min=0)
    # Rows of Uᵀ P are the right singular vectors times their singular values.
    axes = vectors[:, kept].T @ centred if wide else (vectors[:, kept] * values[kept].sqrt()).T
    return axes.to(partners.dtype)


def _bends(
    f: Function, x: Tensor, targets: Tensor, directions: Tensor, head: Head, rows: int
) -> Tensor:
    """½ (g − y)ᵀ∂²f[v, v] of each example along each of its directions (batch, k, *dims)."""
    batch, k = directions.shape[:2]
    values = x.new_zeros(batch, k, dtype=torch.float64)
    with torch.no_grad():
        residual = probabilities(f(x), head) - targets
    for start in range(0, batch * k, rows):
        flat = torch.arange(start, min(start + rows, batch * k), device=x.device)
        i, j = flat // k, flat % k
        second = taylor_terms(f, x[i], directions[i, j], 2)[2]
        values[i, j] = (residual[i] * second).sum(1).double()
    return values
