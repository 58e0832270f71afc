"""Soft-label Mixup's minimiser: where it is, when it is finite, when it is unique.

F(w) = (1/n²) Σ_ij E_λ[softplus(f_λ) − t_λ f_λ]. Along a direction v its growth rate at infinity is
(1/n²) Σ_ij E_λ[max(0, f) − t f], f = v·x̃. A pair of opposite classes has 0 < t < 1, so it
contributes a positive amount unless v·x_i = v·x_j = 0. Hence:

* Both classes present: every point belongs to such a pair, F grows in every direction that the
  data span, and the minimiser is finite. It is unique iff the points span R^d (else any vector
  orthogonal to them may be added, as for colinear points).
* One class: no labels are mixed, and F has no finite minimiser iff some v has z_i·v ≥ 0 for all i
  and > 0 for one, as for ERM.
* α → 0: λ tends to 0 or 1 and F to ERM's risk plus α G(w), G the limit of the rate above over α. So
  ‖ŵ‖ grows like log(1/α), and the direction tends to the one that minimises G subject to margins of
  at least 1 (the argument of Rosset, Zhu and Hastie, JMLR 2004, with G in the norm's place). With
  H(c) = −c log c − (1−c) log(1−c),

      G(w) = (1/n²) Σ_{i ∈ +, j ∈ −} (a + b)(1 − H(a/(a + b))),   a = w·x_i ≥ 0, b = −w·x_j ≥ 0,

  which is in general not the Euclidean max-margin direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy import optimize
from scipy.special import entr

from theory.errors import InputError
from toy.objective import DEFAULT_NODES, Objective


@dataclass(frozen=True)
class Minimiser:
    """The minimiser of an objective.

    Attributes:
        w: The minimiser; the shortest one where it is not unique.
        loss: The objective there.
        gradient_norm: ‖∇F(w)‖.
        unique: Whether the points span R^d.
        rank: The dimension they span.
        iterations: Newton steps taken.
        nodes: Quadrature nodes at which the answer stopped moving.
    """

    w: Float64[np.ndarray, " d"]
    loss: float
    gradient_norm: float
    unique: bool
    rank: int
    iterations: int
    nodes: int


def recession_direction(z: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " d"] | None:
    """A v with z_i·v ≥ 0 for all i and Σ z_i·v > 0, by a linear program; None if there is none.

    It exists iff the logistic risk on label-absorbed points z has no minimiser.
    """
    scale = np.abs(z).max()
    if scale == 0.0:
        return None
    z = z / scale
    bounds = [(-1.0, 1.0)] * z.shape[1]
    answer = optimize.linprog(-z.sum(0), A_ub=-z, b_ub=np.zeros(len(z)), bounds=bounds)
    return answer.x if answer.status == 0 and -answer.fun > 1e-9 else None


def need_finite(objective: Objective) -> None:
    """Accept an objective that has a finite minimiser.

    Raises:
        InputError: If it has none; the line says why.
    """
    classes = np.unique(objective.data.y).size
    if objective.protocol == "mixup-soft" and classes > 1:
        return
    if recession_direction(objective.data.signed) is None:
        return
    why = (
        "all labels agree, so mixing leaves them hard"
        if objective.protocol == "mixup-soft"
        else f"{objective.protocol} keeps hard labels"
    )
    raise InputError(
        f"no finite minimiser: {why} and some direction separates the points; "
        "follow the gradient flow instead"
    )


def _curvature(objective: Objective, w: np.ndarray) -> np.ndarray:
    shift, hessian = objective.hessian(w)
    return np.exp(shift) * hessian


def _newton(
    objective: Objective, basis: np.ndarray, start: np.ndarray, tolerance: float
) -> tuple[np.ndarray, float, int]:
    """Damped Newton in the span of the points: (w, gradient norm, steps)."""
    w, size = start, np.inf
    risk = np.exp(objective.log_risk(w))
    for step in range(200):
        gradient = objective.gradient(w) @ basis
        before, size = size, float(np.linalg.norm(gradient))
        # At small α the risk itself is small: go on as long as Newton still gains.
        if size == 0.0 or 0.1 * before < size <= tolerance:
            return w, size, step
        direction = np.linalg.solve(basis.T @ _curvature(objective, w) @ basis, -gradient)
        slope = float(gradient @ direction)
        damping = 1.0
        while True:
            trial = w + damping * (basis @ direction)
            value = np.exp(objective.log_risk(trial))
            enough = value <= risk + 1e-4 * damping * slope
            # Where rounding hides the decrease the gradient tells.
            if not enough and abs(value - risk) <= 1e-13:
                enough = np.linalg.norm(objective.gradient(trial) @ basis) < size
            if enough or damping < 1e-8:
                break
            damping /= 2.0
        w, risk = trial, value
    return w, size, 200


def minimise(objective: Objective, tolerance: float = 1e-12, max_nodes: int = 768) -> Minimiser:
    """The minimiser by Newton's method to a gradient norm of `tolerance`.

    Quadrature nodes are added, half as many again at a time, until the minimiser moves by less than
    1e-10 of its size, or by what rounding of the gradient moves it.

    Args:
        objective: Usually "mixup-soft"; any objective with a finite minimiser will do.
        tolerance: Gradient norm to reach.
        max_nodes: Where to stop adding nodes.

    Raises:
        InputError: If there is no finite minimiser, or Newton or the quadrature does not settle.
    """
    need_finite(objective)
    p = objective.points
    _, singular, rows = np.linalg.svd(p, full_matrices=False)
    rank = int((singular > singular[0] * max(p.shape) * np.finfo(float).eps).sum())
    basis = rows[:rank].T
    w, size, steps = _newton(objective, basis, np.zeros(p.shape[1]), tolerance)
    iterations, nodes = steps, objective.nodes or DEFAULT_NODES
    moved, floor = (0.0, 1.0) if objective.protocol == "erm" else (np.inf, 1e-10)
    while moved > floor and nodes < max_nodes:
        nodes = min(nodes * 3 // 2, max_nodes)
        before, objective = w, replace(objective, nodes=nodes)
        w, size, steps = _newton(objective, basis, w, tolerance)
        iterations += steps
        length = max(float(np.linalg.norm(w)), 1e-300)
        moved = float(np.linalg.norm(w - before)) / length
        # The gradient rounds to 1e-16 |p|; at small α the curvature is small and w feels that.
        flattest = np.linalg.eigvalsh(basis.T @ _curvature(objective, w) @ basis)[0]
        floor = max(1e-10, 1e-16 * float(np.abs(p).max()) / (flattest * length))
    if size > tolerance or moved > floor:
        raise InputError(
            f"the minimiser did not settle (gradient norm {size:.1e}, moved {moved:.1e} with "
            f"{nodes} nodes); choose a larger alpha or rescale the data"
        )
    loss = float(np.exp(objective.log_risk(w)))
    return Minimiser(w, loss, size, rank == p.shape[1], rank, iterations, nodes)


def small_alpha_rate(objective: Objective, w: Float64[np.ndarray, " d"]) -> float:
    """G(w), the rate at which "mixup-soft" grows along w per unit of α as α → 0.

    Args:
        objective: Gives the set.
        w: A direction with non-negative margins on every point.
    """
    f = objective.data.x @ w
    positive = objective.data.y > 0
    a = f[positive][:, None]
    b = -f[~positive][None, :]
    total = a + b
    share = np.divide(a, total, out=np.zeros_like(total), where=total > 0)
    return float((total * (1.0 - entr(share) - entr(1.0 - share))).sum() / f.size**2)
