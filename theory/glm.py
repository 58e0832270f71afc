"""Generalised linear models on a finite population, where every expectation is a finite sum.

The setting of Theorem 2 (Zou, Verma et al., "MixupE", UAI 2023): u = θᵀx, log-partition A and

    ℓ(θ, (x, y)) = A(u) − y u,    g = A'(u),    q̂ = (y − g) u
    logistic  A = log(1 + e^u), y in [0, 1];   linear  A = u²/2;   poisson  A = e^u, y ≥ 0

ℓ is the negative log-likelihood without the terms in y alone, so for "linear" and "poisson" it can
be negative.

A population is a finite table of points, labels and probabilities; a sample of any size is a table
of frequencies over it. Because ℓ is affine in y, L_mix of a sample is a double sum over distinct
points, whatever n is, and its expectation over samples is exact:

    L_mix    = Σ_kl p_k p_l E_λ A(λ u_k + (1−λ) u_l) − (1−c) mean(y u) − c mean(y) mean(u)
    E L_mix  = (1/n) E ℓ + (1 − 1/n) L_mix(population)

with c = E[2λ(1−λ)]; the share 1/n are the pairs i = j.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize, stats
from torch import Tensor

from theory import losses
from theory.errors import InputError
from theory.mixing import beta_law, relabelled_law

FamilyName = Literal["logistic", "linear", "poisson"]
Table = Float[Tensor, "points labels"]


@dataclass(frozen=True)
class Family:
    """An exponential family in its natural parameter u.

    Attributes:
        name: Of the family.
        log_partition: A(u), elementwise.
        mean: A'(u), elementwise.
        target: The u at which A'(u) = y; infinite where y is on the rim of the means.
        label_range: What y may be.
    """

    name: str
    log_partition: Callable[[Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], Tensor]
    label_range: tuple[float, float]


FAMILIES = {
    "logistic": Family(
        "logistic",
        lambda u: losses.log_partition(u.reshape(-1, 1), "sigmoid").reshape(u.shape),
        torch.sigmoid,
        torch.logit,
        (0.0, 1.0),
    ),
    "linear": Family(
        "linear", lambda u: u * u / 2, lambda u: u, lambda y: y, (-math.inf, math.inf)
    ),
    "poisson": Family("poisson", torch.exp, torch.exp, torch.log, (0.0, math.inf)),
}


def family_named(name: str) -> Family:
    """The family of that name.

    Raises:
        InputError: If there is none.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown family {name!r}: use one of {', '.join(get_args(FamilyName))}")
    return FAMILIES[name]


@dataclass(frozen=True)
class Population:
    """A finite population of points, each with a law of its label.

    Attributes:
        family: The exponential family that the loss belongs to.
        x: Points.
        y: Labels that each point may have.
        p: Probability of each cell (point, label); the sum is one.

    Raises:
        InputError: If shapes differ, a number is not finite, a label is outside the family's range
            or the probabilities are none.
    """

    family: Family
    x: Float[Tensor, "points d"]
    y: Table
    p: Table

    def __post_init__(self) -> None:
        if self.y.shape != self.p.shape or len(self.x) != len(self.y):
            raise InputError("points, labels and probabilities differ in number: give one row each")
        if not all(bool(t.isfinite().all()) for t in (self.x, self.y, self.p)):
            raise InputError("the data hold NaN or infinite values: remove or impute those rows")
        low, high = self.family.label_range
        if not bool(((self.y >= low) & (self.y <= high)).all()):
            raise InputError(
                f"{self.family.name} labels must lie in [{low:g}, {high:g}], not in "
                f"[{float(self.y.min()):g}, {float(self.y.max()):g}]: choose another family"
            )
        if not bool((self.p >= 0).all()) or abs(float(self.p.sum()) - 1) > 1e-9:
            raise InputError("the probabilities of a population must be positive and sum to one")

    def draw(self, n: int, rng: np.random.Generator) -> Table:
        """Frequencies of the cells in n independent draws; they sum to one.

        Raises:
            InputError: If n is below 2, where Mixup has no pairs, or beyond 10¹⁵.
        """
        if not 2 <= n <= 10**15:
            raise InputError(f"a sample of {n} cannot be drawn: n must be from 2 to 1e15")
        p = self.p.numpy().ravel()
        counts = rng.multinomial(n, p / p.sum()).reshape(self.p.shape)
        return torch.from_numpy(counts / n)

    def logits(self, theta: Float[Tensor, "*runs d"]) -> Float[Tensor, "*runs points"]:
        """U = θᵀx at every point."""
        return theta @ self.x.T

    def q_hat(self, theta: Float[Tensor, " d"]) -> Table:
        """q̂ = (y − A'(u)) u of every cell (equation 1 of the paper, one logit)."""
        u = self.logits(theta)[:, None]
        return (self.y - self.family.mean(u)) * u

    def risk(self, theta: Float[Tensor, " d"], w: Table) -> Tensor:
        """L_std = Σ w ℓ; the true risk if w = p."""
        u = self.logits(theta)[:, None]
        return (w * (self.family.log_partition(u) - self.y * u)).sum()

    def mixup_risk(self, theta: Float[Tensor, " d"], w: Table, mixing: "Mixing") -> Tensor:
        """L_mix of a sample with frequencies w, over all pairs, i = j included."""
        seen = w.sum(1) > 0
        share, u, y = w.sum(1)[seen], self.logits(theta)[seen], (w * self.y).sum(1)[seen]
        lam = mixing.lam[:, None, None]
        mixed = self.family.log_partition(lam * u[:, None] + (1 - lam) * u)
        pairs = torch.einsum("q,k,l,qkl->", mixing.weights, share, share, mixed)
        c = mixing.cross
        return pairs - (1 - c) * (y @ u) - c * y.sum() * (share @ u)

    def penalty(self, theta: Float[Tensor, " d"], w: Table, mixing: "Mixing") -> Tensor:
        """MixupE's R = E[a]/n Σ |q̂(x_i)|, with E[a] under the law 𝒟_λ of Theorem 1."""
        return mixing.mean_a * (w * self.q_hat(theta).abs()).sum()

    def expected_mixup_risk(self, theta: Float[Tensor, " d"], n: int, mixing: "Mixing") -> float:
        """E_S L_mix over samples of n."""
        pairs = self.mixup_risk(theta, self.p, mixing)
        return float(self.risk(theta, self.p) / n + (1 - 1 / n) * pairs)


@dataclass(frozen=True)
class Mixing:
    """The law of λ ~ Beta(α, α) in the form that L_mix needs.

    Over all ordered pairs λ and 1 − λ are alike, so the nodes above a half do for both.

    Raises:
        InputError: If α is not positive, or too large for a rule, or `nodes` is below 2.
    """

    alpha: float = 1.0
    nodes: int = 8

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.nodes % 2:
            raise InputError(f"--nodes is {self.nodes}: it must be even and at least 2")
        _ = self.rule

    @cached_property
    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        """(λ, weights) of the nodes with λ > 1/2; the weights sum to one."""
        a, weights = beta_law(self.alpha).quadrature(self.nodes)
        near = a < 0.5
        return 1 - a[near], weights[near] / weights[near].sum()

    @cached_property
    def lam(self) -> Float[Tensor, " q"]:
        """Nodes."""
        return torch.from_numpy(self.rule[0])

    @cached_property
    def weights(self) -> Float[Tensor, " q"]:
        """Their weights."""
        return torch.from_numpy(self.rule[1])

    @cached_property
    def cross(self) -> float:
        """E[2λ(1−λ)]."""
        law = beta_law(self.alpha)
        return 2 * (law.moment(1) - law.moment(2))

    @cached_property
    def mean_a(self) -> float:
        """E[a] under 𝒟_λ, α/(2α+1)."""
        return relabelled_law(self.alpha).moment(1)


def train(
    population: Population,
    w: Table,
    mixing: Mixing,
    *,
    eta: float,
    box: float,
    start: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, " d"]:
    """Minimises L_mix + ηR of a sample over the box |θ_j| ≤ `box` by L-BFGS-B.

    MixupE's total η̂ (L_mix + ηR) has the same direction of descent, as η̂ is held constant in
    differentiation. |q̂| has kinks and need not be convex, so this may be a local minimiser near the
    start, or a point at which 300 iterations ended; the theorem speaks of every θ.

    Args:
        population: Family, points and labels.
        w: Frequencies of the sample.
        mixing: The law of λ.
        eta: η.
        box: Bound of each coordinate.
        start: First θ; 0 where it is not given.

    Returns:
        θ.
    """

    def value_and_slope(theta: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(theta).requires_grad_()
        total = population.mixup_risk(point, w, mixing)
        if eta:
            total = total + eta * population.penalty(point, w, mixing)
        (slope,) = torch.autograd.grad(total, point)
        return total.item(), slope.numpy()

    first = np.zeros(population.x.shape[1]) if start is None else start.numpy()
    found = optimize.minimize(
        value_and_slope, first, jac=True, method="L-BFGS-B", bounds=[(-box, box)] * len(first),
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 300},
    )  # fmt: skip
    return torch.from_numpy(found.x)


def synthetic(
    family: Family, d: int, points: int, scale: float, rng: np.random.Generator
) -> Population:
    """A population whose labels follow the family's law at a known θ*.

    Points are uniform in the unit ball, θ* has a random direction and length `scale`. Labels are
    finitely many, as Theorem 2 needs bounded ones: 0 and 1; u* plus Gaussian noise of deviation 1/2
    at the nodes of a 9-point Gauss–Hermite rule (its first 17 moments are the Gaussian's); counts
    up to the largest mean's quantile 1 − 10⁻⁹.

    Raises:
        InputError: If a size is not positive.
    """
    if d < 1 or points < 2 or not 0 < scale < math.inf:
        raise InputError("a synthetic set needs d >= 1, points >= 2 and a finite positive scale")
    x = rng.standard_normal((points, d))
    x *= (rng.random(points) ** (1 / d) / np.linalg.norm(x, axis=1))[:, None]
    direction = rng.standard_normal(d)
    u = x @ (scale * direction / np.linalg.norm(direction))
    if family.name == "logistic":
        y = np.tile([0.0, 1.0], (points, 1))
        p = stats.bernoulli.pmf(y, 1 / (1 + np.exp(-u))[:, None])
    elif family.name == "linear":
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)
        y = u[:, None] + nodes / 2
        p = np.tile(weights / weights.sum(), (points, 1))
    else:
        top = stats.poisson.ppf(1 - 1e-9, np.exp(u.max()))
        y = np.tile(np.arange(top + 1), (points, 1))
        p = stats.poisson.pmf(y, np.exp(u)[:, None])
    p = p / p.sum(1, keepdims=True) / points
    return Population(family, *(torch.from_numpy(v) for v in (x, y, p)))
