"""What theory says about the flow at late times, and fits that measure it.

For ERM (Soudry et al., JMLR 2018, theorems 3 and 4): w = ŵ log t + r(t) with ŵ = direction/γ, r
bounded, loss·t → 1/γ², ‖w‖/log t → 1/γ, margin gap ~ 1/log t, angle gap ~ 1/log² t.

For signed Mixup the same forms hold. Put w = ŵ log t + r into the flow: of all mixed points only
those between two support vectors keep the weight 1/t, and r tends in the support vectors' span to
the minimiser of the convex function

    Φ(r) = Σ_{s,s' ∈ S} p_ss' E_λ e^{−(λ z_s + (1−λ) z_s')·r} + ŵ·r,     p_ij = 1/n²

(ERM: Σ_s e^{−z_s·r}/n + ŵ·r). A pair of a support vector and another point j adds

    2 p_sj e^{−z_s·r} E_u e^{−uΔ} ≈ 2 p_sj e^{−z_s·r} (Γ(2α)/Γ(α)) Δ^{−α},   Δ = (ŵ·z_j − 1) log t,

since Beta(α, α) has density u^{α−1}/B(α, α) near u = 0. So r(t) − r(∞) ~ C (log t)^{−α} with
C = (∇²Φ)⁻¹ Σ_{s,j} (that, without (log t)^{−α}) z_s, where ERM's r converges like a power of t. The
smaller α, the more mass at λ → 1 and the slower this correction; it never reaches the direction or
the exponents above, and by dL/dt = −‖∇L‖² it changes loss·t only by (log t)^{−α−1}. Without the
pairs i = j and with one support vector Φ has no such term, and ‖w‖ γ = log t − α log log t + O(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from jaxtyping import Float64
from scipy import optimize

from theory.errors import InputError
from toy.flow import Trajectory
from toy.max_margin import MaxMargin
from toy.objective import Objective
from toy.pairs import lobatto_rule


@dataclass(frozen=True)
class Rate:
    """A fitted number beside its theoretical value.

    Attributes:
        name: What was fitted.
        fitted: The estimate from the last half of the trajectory's log t.
        stderr: The regression's standard error and what neglected orders may still contribute,
            added in quadrature. The trajectory has no noise, so the second part is the one that
            matters; the change of the estimate since the window from a quarter to a half of log t
            measures it.
        theory: The limit that theory gives.
    """

    name: str
    fitted: float
    stderr: float
    theory: float


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error."""
    x = x - x.mean()
    square = x @ x
    slope = float(x @ y / square)
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (x.size - 2) / square))


def fit_power(
    x: Float64[np.ndarray, " k"], y: Float64[np.ndarray, " k"], correction: float | None = None
) -> tuple[float, float]:
    """Fit y = A (x + b)^p (1 + c x^−correction): p and its standard error.

    The shift b absorbs the next order in 1/x; c is left out where no `correction` is given.

    Raises:
        InputError: If a y is not positive, or fewer than 6 points are given.
    """
    if x.size < 6 or not (y > 0.0).all():
        raise InputError("a power law needs at least 6 points, all positive; take a shorter window")
    log_x, log_y = np.log(x), np.log(y)
    factor = np.zeros_like(x) if correction is None else (x / x.min()) ** -correction

    def misfit(parameters: np.ndarray) -> np.ndarray:
        log_a, p, b, c = parameters
        return log_a + p * np.log(x + b) + np.log1p(c * factor) - log_y

    slope, _ = _line(log_x, log_y)
    start = [np.mean(log_y - slope * log_x), slope, 0.0, 0.0]
    bounds = ([-np.inf, -np.inf, -0.95 * x.min(), -0.95], np.inf)
    answer = optimize.least_squares(
        misfit, start, x_scale="jac", bounds=bounds, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    variance = 2.0 * answer.cost / (x.size - 4) * np.linalg.pinv(answer.jac.T @ answer.jac)
    return float(answer.x[1]), float(np.sqrt(variance[1, 1]))


def _windows(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the last half of log t, and of the quarter before it."""
    return s > s[-1] / 2.0, (s > s[-1] / 4.0) & (s <= s[-1] / 2.0)


def _what_is_left(change: float, order: float) -> float:
    """How far an estimate may still be off that changed so much while x doubled.

    A neglected order x^−q changes by 2^q − 1 of what is left of it; q is taken as min(1, order),
    the slowest that theory allows.
    """
    return abs(change) / (2.0 ** min(1.0, order) - 1.0)


def late_rates(objective: Objective, trajectory: Trajectory) -> list[Rate]:
    """Loss, norm, margin-gap and angle-gap rates of a flow that diverges along the max margin.

    Args:
        objective: What flowed: "erm" or "mixup-signed". For the latter the gaps are fitted with
            their (log t)^−α correction.
        trajectory: Its path to log10 t of at least 9; corrections of order 1/log t are still large
            there, 100 is a better choice.

    Raises:
        InputError: If the trajectory is too short, or a gap is near rounding: on a symmetric set
            the leading order is absent, ERM's angle gap falls like a power of t and that of
            signed Mixup at α = 1 like (log t)^−6.
    """
    s = trajectory.log_t
    if objective.protocol == "mixup-soft":
        raise InputError("mixup-soft has a finite minimiser: nothing diverges, there are no rates")
    if s[-1] < 20.0:
        raise InputError("rates need a longer flow: choose log10_t of at least 9")
    if trajectory.log_loss[-1] > -0.5 * s[-1]:
        raise InputError(
            f"the loss has only come to e^{trajectory.log_loss[-1]:.3g}: values this small need a "
            "longer flow; rescale the features to about 1"
        )
    correction = objective.alpha if objective.protocol == "mixup-signed" else None
    late, early = _windows(s)
    rates = []

    def add(name: str, values: np.ndarray, theory: float, power: bool) -> None:
        if power and values[late].min() < 1e-13:
            raise InputError(
                f"{name}: the gap falls faster and is near rounding, as on symmetric and on "
                "colinear sets; choose a generic one such as skewed"
            )
        (fitted, error), (before, _) = (
            fit_power(s[w], values[w], correction) if power else _line(s[w], values[w])
            for w in (late, early)
        )
        left = _what_is_left(fitted - before, correction or 1.0)
        # 1e-12 is the integrator's tolerance.
        stderr = float(np.sqrt(error**2 + left**2 + 1e-24))
        rates.append(Rate(name, fitted, stderr, theory))

    add("loss ~ t^p", trajectory.log_loss, -1.0, False)
    add("norm / log t -> 1/margin", trajectory.norm, 1.0 / trajectory.reference.margin, False)
    relative = trajectory.margin_gap / trajectory.reference.margin
    # With one support vector the margin of w/‖w‖ is γ cos, and its gap that of the angle.
    alone = trajectory.reference.support.sum() == 1
    add("margin gap ~ (log t)^p", relative, -2.0 if alone else -1.0, True)
    add("angle gap ~ (log t)^p", trajectory.angle_gap, -2.0, True)
    return rates


def mixing_rate(objective: Objective, trajectory: Trajectory) -> Rate:
    """The exponent of |r(t) − r(∞)| ~ (log t)^p under signed Mixup, which theory puts at −α.

    The next orders are (log t)^{2p}, (log t)^{3p} and (log t)^{p−1}; they are fitted along, their
    coefficients by linear least squares for each p. Late windows are needed: run the flow to
    log10_t of 300.

    Raises:
        InputError: As `residual_limit`, or if the protocol is not "mixup-signed".
    """
    if objective.protocol != "mixup-signed":
        raise InputError("only mixup-signed has a (log t)^-alpha correction")
    r, _ = residual_limit(objective, trajectory.reference)
    s = trajectory.log_t
    with np.errstate(invalid="ignore"):
        offset = trajectory.w - s[:, None] * trajectory.reference.w
    support = objective.data.signed[trajectory.reference.support]
    # Outside the support vectors' span theory leaves the limit to the path.
    offset = (offset - r) @ np.linalg.pinv(support) @ support
    size = np.linalg.norm(offset, axis=1)

    def exponent(window: np.ndarray) -> float:
        x, y = s[window], size[window]

        def misfit(p: np.ndarray) -> np.ndarray:
            terms = np.stack([x ** p[0], x ** (2 * p[0]), x ** (3 * p[0]), x ** (p[0] - 1)], axis=1)
            terms /= y[:, None]
            return terms @ np.linalg.lstsq(terms, np.ones_like(x))[0] - 1.0

        start = _line(np.log(x), np.log(y))[0]
        tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
        return float(optimize.least_squares(misfit, [start], **tight).x[0])

    late, early = _windows(s)
    fitted = exponent(late)
    left = _what_is_left(fitted - exponent(early), objective.alpha)
    return Rate("r - r(inf) ~ (log t)^p", fitted, left, -objective.alpha)


def _support_pairs(objective: Objective, reference: MaxMargin) -> tuple[np.ndarray, np.ndarray]:
    """Mixed points between support vectors, and their weights in the objective's average."""
    z = objective.data.signed
    support = np.flatnonzero(reference.support)
    if objective.protocol == "erm":
        return z[support], np.full(support.size, 1.0 / len(z))
    lam, weights = lobatto_rule(objective.alpha, 64)
    lam = lam[:, None, None, None]
    mixed = lam * z[support][:, None] + (1.0 - lam) * z[support]
    pairs = weights[:, None, None] * objective.pair_weights[np.ix_(support, support)]
    return mixed.reshape(-1, z.shape[1]), pairs.ravel()


def residual_limit(
    objective: Objective, reference: MaxMargin
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    """The limit of w − ŵ log t in the support vectors' span, and the curvature ∇²Φ there.

    Args:
        objective: "erm" or "mixup-signed".
        reference: Its set's max margin.

    Raises:
        InputError: For "mixup-soft", or where no pair of support vectors has weight.
    """
    points, weights = _support_pairs(objective, reference)
    if objective.protocol == "mixup-soft" or weights.sum() < 1e-15:
        raise InputError("w - ŵ log t has no limit here: no pair of support vectors keeps a label")
    support = objective.data.signed[reference.support]
    _, singular, rows = np.linalg.svd(support, full_matrices=False)
    basis = rows[singular > 1e-10 * singular[0]].T
    points, target = points @ basis, reference.w @ basis

    def potential(r: np.ndarray) -> tuple[float, np.ndarray]:
        mass = weights * np.exp(-points @ r)
        return float(mass.sum() + target @ r), target - mass @ points

    def curvature(r: np.ndarray) -> np.ndarray:
        return (points.T * (weights * np.exp(-points @ r))) @ points

    answer = optimize.minimize(
        potential, np.zeros(basis.shape[1]), jac=True, hess=curvature, method="trust-exact"
    )
    r = answer.x
    for _ in range(5):  # Newton polishes what the trust region left
        r = r - np.linalg.solve(curvature(r), potential(r)[1])
    return basis @ r, basis @ curvature(r) @ basis.T


def mixing_correction(objective: Objective, reference: MaxMargin) -> Float64[np.ndarray, " d"]:
    """C of signed Mixup's r(t) − r(∞) ~ C (log t)^{−α}, in the support vectors' span.

    Raises:
        InputError: As `residual_limit`, or if the protocol is not "mixup-signed".
    """
    if objective.protocol != "mixup-signed":
        raise InputError("only mixup-signed has a (log t)^-alpha correction")
    r, curvature = residual_limit(objective, reference)
    z, alpha = objective.data.signed, objective.alpha
    inside, outside = reference.support, ~reference.support
    gap = z[outside] @ reference.w - 1.0
    scale = np.exp(lgamma(2.0 * alpha) - lgamma(alpha))
    pairs = 2.0 * objective.pair_weights[np.ix_(inside, outside)]
    mass = np.exp(-z[inside] @ r) * (pairs @ gap**-alpha) * scale
    return np.linalg.pinv(curvature, rcond=1e-10, hermitian=True) @ (mass @ z[inside])
