"""From numbers to verdicts: what each claim of the theory is held against."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch

from theory.agreement import COMPARISONS, Estimate, Reduced, bootstrapped, relative_size
from theory.errors import InputError, unknown
from theory.report import Claim, Report


@dataclass(frozen=True)
class Thresholds:
    """What each claim is held against; set before any measurement, and printed with the verdicts.

    Attributes:
        self_check: Largest relative error of a derivative against central differences.
        identity: Largest relative difference of the two sides of Theorem 1 in exact arithmetic;
            the rounding of the precision and the measured quadrature error are added to it.
        first_order: Largest |R − R_1|/|R| at which the first order may be said to dominate.
        orders: Largest |R − R_K|/|R − R_1| at which higher orders may be said to help.
        normalization: Largest ‖normalisation gap‖/‖q‖ at which E[x'] = 0 may be said to hold.
        homogeneity: Largest ‖homogeneity gap‖/‖q‖ at which J x ≈ f may be said to hold.
        q_hat: Largest ‖q − q̂‖/‖q‖ at which q̂ ≈ q; the sum of the two before.
        gradient: Smallest cosine of ∇mean|q| and ∇mean|q̂| at which they may be said to agree.

    Raises:
        InputError: If one of them is no finite number.
    """

    self_check: float = 1e-6
    identity: float = 1e-10
    first_order: float = 0.5
    orders: float = 1.0
    normalization: float = 0.1
    homogeneity: float = 0.1
    q_hat: float = 0.2
    gradient: float = 0.9

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"the threshold {name} is {value!r}: it must be a finite number")


def judge(
    samples: pd.DataFrame,
    agreement: dict[str, Estimate],
    alignment: pd.DataFrame,
    alignment_note: str,
    pairs: dict[str, Any],
    orders: dict[str, Any],
    self_check: dict[str, Any],
    self_check_note: str,
    limits: Thresholds,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, Claim]:
    """Every claim with its verdict, in the order of the argument, from what was measured.

    Args:
        samples: Columns `q` and both gaps.
        agreement: Of q̂ with q, as from `theory.agreement.compare`.
        alignment: As from `theory.alignment.gradient_alignment`, or empty.
        alignment_note: Why it is empty.
        pairs: As from `theory.regularizer.measure_theorem_1`, with
            `theory.expectation.SampledRegularizer` as a mapping under `sampled`, or empty.
        orders: As from `theory.orders.measure_orders`, or empty.
        self_check: `theory.self_check.SelfCheck` as a mapping, or empty.
        self_check_note: Why it is empty.
        limits: The thresholds.
        dtype: Precision of the measurement.
        seed: Of the bootstrap.
    """
    nan = math.nan
    error = agreement["relative_error"]
    q = samples["q"].to_numpy()
    q_zero = "" if np.any(q) else "q is zero on every sample"
    # Sums of float32 losses carry about a hundred units of its rounding.
    rounding = 0.0 if dtype == torch.float64 else 100 * torch.finfo(dtype).eps
    quadrature = pairs.get("quadrature_error", 0.0)
    identity_note = "needs batch_norm=eval"
    if pairs:
        identity_note = (
            f"on all pairs of {pairs['samples']} samples; the bound adds rounding, {rounding:.1g}, "
            f"and the measured quadrature error, {quadrature:.1g} at {pairs['nodes']} nodes"
        )
    scale_note = (
        ""
        if pairs
        else (
            "batch statistics cancel the scale of the batch: in a network that normalises first, "
            "(g − y)ᵀJx vanishes and q is the normalisation gap by construction"
        )
    )
    claims = [
        Claim(
            "self_check", "Derivatives are right", "autodiff vs central differences",
            max((e for e in self_check.get("errors", ()) if e == e), default=nan), "<=",
            limits.self_check, note=self_check_note,
        ),
        Claim(
            "identity", "L_mix = L_std + R", "relative difference",
            pairs.get("identity_error", nan), "<=", limits.identity + rounding + quadrature,
            note=identity_note,
        ),
        _first_order_claim(pairs, len(samples), limits.first_order),
        *_orders_claim(orders, limits.orders, seed),
        _sized(
            "normalization", "E[x'] = 0", "‖normalisation gap‖ / ‖q‖",
            q, samples["normalization_gap"], limits.normalization, q_zero or scale_note, seed,
        ),
        _sized(
            "homogeneity", "J x ≈ f", "‖homogeneity gap‖ / ‖q‖",
            q, samples["homogeneity_gap"], limits.homogeneity, q_zero, seed,
        ),
        Claim(
            "q_hat", "q̂ ≈ q", "‖q − q̂‖ / ‖q‖",
            error.value, "<=", limits.q_hat, error.low, error.high, note=q_zero,
        ),
        Claim(
            "gradient", "q̂ trains as q does", "cos(∇mean|q|, ∇mean|q̂|)",
            nan if alignment.empty else float(alignment["cosine_abs_q"].iloc[0]), ">=",
            limits.gradient, note=alignment_note,
        ),
    ]  # fmt: skip
    return {claim.name: claim for claim in claims}


def _first_order_claim(pairs: dict[str, Any], samples: int, limit: float) -> Claim:
    """|R − R_1|/|R| with R as it was estimated over all samples, and what that estimate leaves."""
    claim = Claim(
        "first_order", "First order dominates R", "|R − R_1| / |R|", math.nan, "<=", limit,
        note="needs batch_norm=eval",
    )  # fmt: skip
    if not pairs:
        return claim
    found = pairs["sampled"]
    notes = [
        f"R = {found['mean']:.3g} ± {found['high'] - found['mean']:.2g} (95 %, which gives the "
        f"interval) over {samples} samples by {found['draws']} draws"
    ]
    if found["tolerance"] is not None and not found["met"]:
        notes.append(f"the tolerance of {found['tolerance']:g} was not reached")
    if found["mean"] == 0:
        return replace(claim, note="R is zero on these samples")
    value, low, high = rest_of_first_order(
        found["first_order"], found["mean"], found["low"], found["high"]
    )
    return replace(claim, value=value, low=low, high=high, note="; ".join(notes))


def _orders_claim(orders: dict[str, Any], limit: float, seed: int) -> list[Claim]:
    """Whether all orders together come nearer to R than the first alone; none if not asked for."""
    if not orders:
        return []
    k, rest = orders["order"], orders["rest_of_sample"]
    gain = bootstrapped(_size_of_means, np.array(rest["first"]), np.array(rest["last"]), seed=seed)
    bending = "kinks alone" if orders["affine_pieces"] else "bending of f"
    tangent, bent = (
        f"{round(100 * orders[part] / orders['r'])} %" if orders["r"] else "none"
        for part in ("tangent", "bending")
    )
    note = (
        f"on {orders['pairs']} pairs of {orders['samples']} samples; of R, {tangent} is the "
        f"network's tangent and {bent} the {bending}"
    )
    return [
        Claim(
            "orders", f"R_{k} is nearer to R than R_1", f"|R − R_{k}| / |R − R_1|",
            gain.value, "<=", limit, gain.low, gain.high, note,
        )
    ]  # fmt: skip


def _size_of_means(reference: np.ndarray, part: np.ndarray) -> Reduced:
    """|mean of part| / |mean of reference|."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(part.mean(-1)) / np.abs(reference.mean(-1))


def rest_of_first_order(
    first_order: float, mean: float, low: float, high: float
) -> tuple[float, float, float]:
    """|R − R_1|/|R| at R = `mean`, and its least and largest value for R in [low, high].

    The largest is infinite where R may be zero.
    """

    def rest(r: float) -> float:
        return abs(1 - first_order / r) if r else math.inf

    ends = rest(low), rest(high)
    least = 0.0 if low <= first_order <= high else min(ends)
    return rest(mean), least, math.inf if low <= 0 <= high else max(ends)


def _sized(
    name: str, statement: str, measure: str, q: np.ndarray, gap: pd.Series, limit: float,
    note: str, seed: int,
) -> Claim:  # fmt: skip
    size = bootstrapped(relative_size, q, gap.to_numpy(), seed=seed)
    return Claim(name, statement, measure, size.value, "<=", limit, size.low, size.high, note)


CONDITION_NAMES = (
    *("self_check", "identity", "first_order", "orders", "normalization", "homogeneity", "q_hat"),
    "gradient",
    *COMPARISONS,
)
_CONDITION = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")
_RELATIONS = {
    "<": float.__lt__,
    "<=": float.__le__,
    ">": float.__gt__,
    ">=": float.__ge__,
}


def parse_condition(text: str) -> tuple[str, str, float]:
    """Splits "q_hat>0.5" into its name, relation and bound.

    Raises:
        InputError: If the text has another form or names nothing that is measured.
    """
    match = _CONDITION.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        bound = float(match[3])
    except ValueError:
        raise InputError(f"--fail-on {text!r} is no condition: write it as q_hat>0.5") from None
    if match[1] not in CONDITION_NAMES:
        raise unknown("name in --fail-on", match[1], CONDITION_NAMES)
    return match[1], match[2], bound


def broken_conditions(report: Report, conditions: Sequence[str]) -> list[str]:
    """Those of the `--fail-on` conditions that the report meets, each with the value.

    A quantity that was not measured counts as meeting its condition: a build must not pass on it.
    """
    broken = []
    for text in conditions:
        name, relation, bound = parse_condition(text)
        claim = report.claims.get(name)
        value = (
            float(report.agreement["value"].get(name, math.nan)) if claim is None else claim.value
        )
        if math.isnan(value):
            reason = f": {claim.note}" if claim and claim.note else ""
            reason = ": it needs an order above 1" if name == "orders" and not claim else reason
            broken.append(f"{text} ({name} was not measured{reason})")
        elif _RELATIONS[relation](value, bound):
            broken.append(f"{text} ({name} is {value:.4g})")
    return broken
