"""Gradient flow in logarithmic time: dw/ds = e^s (−∇L(w)), s = log t, to t = 1e30 and far beyond.

Margins grow like log t (Soudry et al., JMLR 2018), so in s the flow is a mild differential equation
and a library integrator crosses hundreds of decades in a fraction of a second. From t = 0 to t = 1
the flow runs in ordinary time. e^s and the gradient's own exponential are joined before either
overflows or underflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.integrate import solve_ivp

from theory.errors import InputError
from toy.max_margin import MaxMargin, max_margin
from toy.minimiser import minimise
from toy.objective import Objective

LOG10_T_LIMIT = 400.0
"""e^s × gradient rounds to s·2.2e-16, relatively: 2e-13 here, the last place below rtol 1e-12."""


@dataclass(frozen=True)
class Trajectory:
    """A path w(t) with what the implicit-bias figures show.

    Attributes:
        log_t: Natural logarithm of the time.
        w: Weights, one row a time.
        norm: ‖w‖.
        log_loss: Natural logarithm of the training objective.
        angle_gap: 1 − cos(w, ŵ), free of cancellation.
        margin_gap: γ − min_i z_i·w/‖w‖, in the units of z.
        residual: ‖w − ŵ log t‖ with ŵ = direction/γ; bounded for ERM (Soudry et al., theorem 3).
        reference: The max-margin solution that the gaps refer to.
    """

    log_t: Float64[np.ndarray, " times"]
    w: Float64[np.ndarray, "times d"]
    norm: Float64[np.ndarray, " times"]
    log_loss: Float64[np.ndarray, " times"]
    angle_gap: Float64[np.ndarray, " times"]
    margin_gap: Float64[np.ndarray, " times"]
    residual: Float64[np.ndarray, " times"]
    reference: MaxMargin

    @property
    def ratio(self) -> Float64[np.ndarray, " times"]:
        """‖w‖ γ / log t, which tends to 1 only like 1/log t (NaN or infinite at t ≤ 1)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.norm * self.reference.margin / self.log_t


def gaps(
    w: Float64[np.ndarray, "*times d"],
    z: Float64[np.ndarray, "n d"],
    reference: MaxMargin,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(‖w‖, angle gap, margin gap) for each row of w; at w = 0 the gaps are NaN."""
    norm = np.linalg.norm(w, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = w / norm[..., None]
    angle = 0.5 * ((unit - reference.direction) ** 2).sum(-1)
    margin = reference.margin - (unit @ z.T).min(-1)
    return np.asarray(norm), np.asarray(angle), np.asarray(margin)


def describe(
    objective: Objective,
    reference: MaxMargin,
    log_t: Float64[np.ndarray, " times"],
    w: Float64[np.ndarray, "times d"],
) -> Trajectory:
    """Everything a `Trajectory` holds, from the path itself."""
    norm, angle, margin = gaps(w, objective.data.signed, reference)
    drift = w - np.where(np.isfinite(log_t), log_t, 0.0)[:, None] * reference.w
    log_loss = np.array([objective.log_risk(row) for row in w])
    residual = np.linalg.norm(drift, axis=1)
    return Trajectory(log_t, w, norm, log_loss, angle, margin, residual, reference)


def gradient_flow(
    objective: Objective,
    log10_t: float = 30.0,
    times: int = 200,
    w0: Float64[np.ndarray, " d"] | None = None,
    method: Literal["LSODA", "Radau", "DOP853"] = "LSODA",
    rtol: float = 1e-12,
    progress: Callable[[float], object] | None = None,
) -> Trajectory:
    """Follow dw/dt = −∇L(w) from w(0) = w0 to t = 10^log10_t.

    "mixup-soft" has a finite minimiser, towards which the flow stiffens like t: it is followed
    until the gradient's norm is 1e-10 and stays from there on at the minimiser, found by Newton's
    method.

    Args:
        objective: What descends; its set must be separable.
        log10_t: Decimal logarithm of the final time, in (0, 400].
        times: Number of reported times, evenly spaced in log t from t = 1.
        w0: Start; the origin by default.
        method: scipy's integrator.
        rtol: Relative tolerance; the absolute one is the same number.
        progress: Called again and again with log10 of the time reached.

    Raises:
        InputError: If the set is not separable or log10_t lies outside its range.
    """
    if not 0.0 < log10_t <= LOG10_T_LIMIT:
        raise InputError(
            f"log10 of the final time is {log10_t}: choose it in (0, {LOG10_T_LIMIT:g}], "
            "where float64 still resolves e^(log t - margin) to the integrator's tolerance"
        )
    if times < 2:
        raise InputError(f"need at least 2 reported times, got {times}")
    reference = max_margin(objective.data.signed)

    def ordinary(_: float, w: np.ndarray) -> np.ndarray:
        return -objective.gradient(w)

    def logarithmic(s: float, w: np.ndarray) -> np.ndarray:
        if progress is not None:
            progress(s / np.log(10.0))
        shift, pull = objective.slopes(w)
        return np.exp(min(s + shift, 700.0)) * (pull @ objective.points)

    def jacobian(s: float, w: np.ndarray) -> np.ndarray:
        shift, hessian = objective.hessian(w)
        return -np.exp(min(s + shift, 700.0)) * hessian

    def settled(_: float, w: np.ndarray) -> float:
        return float(np.linalg.norm(ordinary(0.0, w))) - 1e-10

    settled.terminal = True  # type: ignore[attr-defined]
    start = np.zeros(objective.points.shape[1]) if w0 is None else w0
    # Explicit methods would warn of a Jacobian that they do not use.
    implicit = {} if method == "DOP853" else {"jac": jacobian}
    tolerance = {"method": method, "rtol": rtol, "atol": rtol}
    first = solve_ivp(ordinary, (0.0, 1.0), start, **tolerance)
    log_t = np.linspace(0.0, log10_t * np.log(10.0), times)
    soft = objective.protocol == "mixup-soft"
    answer = solve_ivp(
        logarithmic,
        (0.0, log_t[-1]),
        first.y[:, -1],
        t_eval=log_t,
        events=settled if soft else None,
        **tolerance,
        **implicit,
    )
    if not (first.success and answer.success):
        raise InputError(f"the integrator stopped: {answer.message}; choose another method or rtol")
    w = answer.y.T
    if len(w) < times:
        w = np.vstack([w, np.repeat(minimise(objective).w[None], times - len(w), axis=0)])
    return describe(objective, reference, log_t, w)
