"""The hard-margin direction, from a linear program and a non-negative least-squares solver.

With z_i = y_i x_i: minimise ½‖w‖² subject to z_i·w ≥ 1. This is Lawson and Hanson's least-distance
problem (Solving Least Squares Problems, 1974, chapter 23), which their finite active-set method for
non-negative least squares solves to rounding. No descent is involved, so the answer can judge one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy import optimize

from theory.errors import InputError


@dataclass(frozen=True)
class Separability:
    """The verdict of the linear program max γ subject to z_i·v ≥ γ, ‖v‖_∞ ≤ 1, with its proof.

    Attributes:
        separable: Whether some v has z_i·v > 0 for every i.
        direction: The best v, as a unit vector; the proof of separability.
        weights: Convex weights p, the program's duals. If the set is not separable, Σ p_i z_i = 0:
            the origin lies in the convex hull, and p proves it (Gordan's theorem).
        residual: ‖Σ p_i z_i‖_∞ over the largest |z|, close to 0 where p is such a proof.
    """

    separable: bool
    direction: Float64[np.ndarray, " d"]
    weights: Float64[np.ndarray, " n"]
    residual: float


@dataclass(frozen=True)
class MaxMargin:
    """The solution of the hard-margin problem and how well it satisfies its conditions.

    Attributes:
        direction: Unit vector maximising min z_i·direction.
        margin: That minimum, in the units of z.
        duals: Multipliers a ≥ 0 with Σ a_i z_i = direction / margin and Σ a_i = 1/margin². They are
            not unique where support vectors are linearly dependent.
        support: Which points have z·direction = margin (within 1e-9 of it, relatively).
        kkt: The largest of the four residuals below.
        residuals: Relative `primal` violation of z·w ≥ 1, `dual` negativity, `stationarity`
            ‖w − Σ a_i z_i‖/‖w‖ and `complementarity` max a_i (z_i·w − 1) / Σ a.
    """

    direction: Float64[np.ndarray, " d"]
    margin: float
    duals: Float64[np.ndarray, " n"]
    support: Bool[np.ndarray, " n"]
    kkt: float
    residuals: dict[str, float]

    @property
    def w(self) -> Float64[np.ndarray, " d"]:
        """The hard-margin vector ŵ = direction / margin: z·ŵ = 1 on the support vectors."""
        return self.direction / self.margin


def separability(z: Float64[np.ndarray, "n d"], tolerance: float = 1e-9) -> Separability:
    """Decide linear separability (through the origin) by a linear program, with a certificate.

    Args:
        z: Label-absorbed points.
        tolerance: The program's optimum below which a set scaled to max |z| = 1 counts as not
            separable.

    Raises:
        InputError: If the points are all zero or the solver gives up.
    """
    n, d = z.shape
    scale = np.abs(z).max()
    if scale == 0.0:
        raise InputError("all points are zero; no direction separates them")
    z = z / scale
    answer = optimize.linprog(
        c=np.r_[np.zeros(d), -1.0],
        A_ub=np.column_stack([-z, np.ones(n)]),
        b_ub=np.zeros(n),
        bounds=[(-1.0, 1.0)] * d + [(None, None)],
        method="highs",
    )
    if answer.status != 0:
        raise InputError(f"the separability program failed ({answer.message}); rescale the data")
    weights = np.maximum(-answer.ineqlin.marginals, 0.0)
    weights /= weights.sum()
    v = answer.x[:d]
    norm = np.linalg.norm(v)
    return Separability(
        separable=bool(-answer.fun > tolerance),
        direction=v / norm if norm > 0 else v,
        weights=weights,
        residual=float(np.abs(weights @ z).max()),
    )


def need_separable(z: Float64[np.ndarray, "n d"]) -> Separability:
    """The proof of separability.

    Raises:
        InputError: If the set is not separable; the line names the certificate.
    """
    verdict = separability(z)
    if not verdict.separable:
        points = int((verdict.weights > 1e-12).sum())
        raise InputError(
            f"the data are not linearly separable through the origin: a convex combination of "
            f"{points} points y·x is zero (residual {verdict.residual:.1e}); "
            "add a constant feature (--intercept) or choose a separable set"
        )
    return verdict


def max_margin(z: Float64[np.ndarray, "n d"]) -> MaxMargin:
    """Solve the hard-margin problem to rounding.

    Args:
        z: Label-absorbed points y·x, one a row.

    Raises:
        InputError: If the set is not separable.
    """
    verdict = need_separable(z)
    # In units of the program's margin the answer has a norm near 1, where the method is exact.
    scale = float((z @ verdict.direction).min())
    points = z / scale
    n, d = points.shape
    target = np.r_[np.zeros(d), 1.0]
    weights, _ = optimize.nnls(np.vstack([points.T, np.ones(n)]), target, maxiter=100 * n)
    active = np.flatnonzero(weights > 0.0)
    # On the active set the answer is a linear system: this removes the solver's last digits.
    w = np.linalg.lstsq(points[active], np.ones(active.size))[0]
    duals = np.zeros(n)
    duals[active] = np.linalg.lstsq(points[active].T, w)[0]
    slack = points @ w - 1.0
    total = duals.sum()
    residuals = {
        "primal": float(max(0.0, -slack.min())),
        "dual": float(max(0.0, -duals.min()) / total),
        "stationarity": float(np.linalg.norm(w - duals @ points) / np.linalg.norm(w)),
        "complementarity": float((np.abs(duals * slack)).max() / total),
    }
    norm = float(np.linalg.norm(w))
    return MaxMargin(
        direction=w / norm,
        margin=scale / norm,
        duals=duals / scale**2,
        support=slack < 1e-9,
        kkt=max(residuals.values()),
        residuals=residuals,
    )
