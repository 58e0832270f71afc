"""Rademacher complexities of linear classes.

For functions x ↦ θᵀx with θ in Θ and signs ε_i = ±1 with equal chances,

    ℛ(Θ, S) = E_ε sup_θ (1/n) Σ_i ε_i θᵀx_i = (1/n) E_ε h(Σ_i ε_i x_i),    h(v) = sup_θ θᵀv

so a class is its support function h, and the signs enter through one random vector. The classes of
Theorem 2 (Zou, Verma et al., "MixupE", UAI 2023): the ball ‖θ‖² ≤ ξ, where h(v) = √ξ ‖v‖, and
sup |q̂| ≤ γ, where h is a linear program.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import optimize
from torch import Tensor

from theory.errors import InputError
from theory.glm import Family, Population

MOST_ENUMERATED = 16


def signed_sums(x: Float[Tensor, "n d"]) -> Float[Tensor, "signs d"]:
    """Σ_i ε_i x_i for all 2ⁿ choices of signs, each as likely as the others.

    Raises:
        InputError: If n exceeds 16.
    """
    n = len(x)
    if n > MOST_ENUMERATED:
        raise InputError(f"2^{n} signs are too many: sample them, or pass 16 points at most")
    bits = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    return (2 * bits - 1).to(x.dtype) @ x


def sampled_signed_sums(
    x: Float[Tensor, "points d"],
    counts: Int[Tensor, " points"],
    draws: int,
    rng: np.random.Generator,
) -> Float[Tensor, "draws d"]:
    """Draws of Σ_i ε_i x_i for a sample that holds each point `counts` times."""
    heads = rng.binomial(counts.numpy(), 0.5, size=(draws, len(counts)))
    return torch.from_numpy(2 * heads - counts.numpy()).to(x.dtype) @ x


def ball_support(v: Float[Tensor, "signs d"], xi: float) -> Float[Tensor, " signs"]:
    """h(v) = √ξ ‖v‖ of the ball ‖θ‖² ≤ ξ."""
    return math.sqrt(xi) * v.norm(dim=1)


def ball_complexity(
    x: Float[Tensor, "points d"],
    counts: Int[Tensor, " points"],
    xi: float,
    draws: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """ℛ of the ball ‖θ‖² ≤ ξ on a sample that holds each point `counts` times.

    Returns:
        (ℛ, its standard error): exact, with error 0, up to 16 points, by `draws` of signs beyond.
    """
    n = int(counts.sum())
    if n <= MOST_ENUMERATED:
        exact = ball_support(signed_sums(x.repeat_interleave(counts, 0)), xi)
        return float(exact.mean()) / n, 0.0
    return mean_and_sem(ball_support(sampled_signed_sums(x, counts, draws, rng), xi), n)


def ball_bound(n: int, xi: float, squared_norm: float) -> float:
    """The talk's bound √(ξ𝒳)/√n of the ball's complexity, where ‖x_i‖² ≤ 𝒳.

    E‖Σ ε_i x_i‖ ≤ √(E‖Σ ε_i x_i‖²) = √(Σ ‖x_i‖²) ≤ √(n𝒳).
    """
    return math.sqrt(xi * squared_norm / n)


def mean_and_sem(supports: Float[Tensor, " signs"], n: int) -> tuple[float, float]:
    """ℛ = mean h / n from values of h at sampled sums, with its standard error."""
    sem = float(supports.std()) / math.sqrt(len(supports)) if len(supports) > 1 else math.inf
    return float(supports.mean()) / n, sem / n


def largest_bump(family: Family, y_low: float, y_high: float) -> float:
    """The largest q̂ = (y − A'(u)) u that is positive, over u and labels in [y_low, y_high].

    q̂ is positive only between 0 and the u where A' = y; beyond, |q̂| rises with |u|. For γ above
    this value {u : |q̂| ≤ γ} is one interval, and the class sup |q̂| ≤ γ is convex. For u > 0 the
    bump grows with y and for u < 0 it shrinks, so the two ends of the range suffice.
    """
    bump = 0.0
    for y in (y_low, y_high):
        end = float(family.target(torch.tensor(y, dtype=torch.float64)).clamp(-50, 50))
        if end == 0:
            continue
        found = optimize.minimize_scalar(
            lambda u, y=y: -float((y - family.mean(torch.tensor(u, dtype=torch.float64))) * u),
            bounds=(min(end, 0), max(end, 0)), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        bump = max(bump, -found.fun)
    return bump


def _far_end(family: Family, y: Tensor, gamma: float, sign: int) -> Tensor:
    """Where |q̂| rises through γ on one side of 0, by bisection; infinite if it never does."""

    def allowed(u: Tensor) -> Tensor:
        return (family.mean(sign * u) - y) * sign * u <= gamma

    inside = edge = (sign * family.target(y)).clamp(min=0)
    outside = edge + 2 * gamma + y.abs() + 1
    # Beyond the edge |q̂| rises without bound, but with y near the rim of the means no faster than
    # its distance from the rim: for "logistic" (1 − y) u in the limit.
    while bool((far := allowed(outside)).any()):
        outside = torch.where(far, 2 * outside, outside)
    for _ in range(80):
        middle = (inside + outside) / 2
        near = allowed(middle)
        inside, outside = middle.where(near, inside), outside.where(near, middle)
    return sign * torch.where(outside.isinf(), math.inf, inside)


@dataclass(frozen=True)
class QHatClass:
    """Θ = {θ : |q̂| ≤ γ on every cell of a population}, within the box |θ_j| ≤ `box`.

    Attributes:
        x: Points.
        low: Least θᵀx that the class allows at each point.
        high: Largest.
        box: Bound of each coordinate, which makes Θ bounded as the theorem asks.
    """

    x: Float[Tensor, "points d"]
    low: Float[Tensor, " points"]
    high: Float[Tensor, " points"]
    box: float

    @classmethod
    def of(cls, population: Population, gamma: float, box: float) -> "QHatClass":
        """The class for one γ.

        Raises:
            InputError: If γ is so small that the class is not convex.
        """
        possible = population.p > 0
        family, y = population.family, population.y
        bump = largest_bump(family, float(y[possible].min()), float(y[possible].max()))
        if not bump <= gamma < math.inf:
            raise InputError(f"gamma is {gamma:g}: the class is convex from {bump:g} on")
        low = _far_end(family, y, gamma, -1).where(possible, torch.tensor(-math.inf).to(y))
        high = _far_end(family, y, gamma, 1).where(possible, torch.tensor(math.inf).to(y))
        return cls(population.x, low.amax(1), high.amin(1), box)

    def maximiser(self, v: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The θ in the class with the largest θᵀv, by a linear program."""
        rows = np.concatenate([self.x.numpy(), -self.x.numpy()])
        ends = np.concatenate([self.high.numpy(), -self.low.numpy()])
        real = np.isfinite(ends)
        answer = optimize.linprog(
            -v.numpy(), A_ub=rows[real], b_ub=ends[real], bounds=(-self.box, self.box)
        )
        if answer.status != 0:
            raise InputError(f"the linear program over the class failed: {answer.message}")
        return torch.from_numpy(answer.x)

    def support(self, v: Float[Tensor, "signs d"]) -> Float[Tensor, " signs"]:
        """h(v) for each row."""
        return torch.stack([self.maximiser(row) @ row for row in v])
