"""The population objectives of a linear model f = w·x, in log space, exact over pairs and λ.

With labels y = ±1, z = y x, t = (1 + y)/2, and i, j running over the sample independently:

    erm            (1/n)  Σ_i   softplus(−w·z_i)
    mixup-signed   (1/n²) Σ_ij  E_λ softplus(−w·(λ z_i + (1−λ) z_j))
    mixup-soft     (1/n²) Σ_ij  E_λ [softplus(f_λ) − t_λ f_λ],   f_λ, t_λ mixed alike

"mixup-signed" mixes label-absorbed points; "mixup-soft" mixes points and labels, which is Mixup
(Zhang et al., ICLR 2018) on the logistic loss. λ ~ Beta(α, α), by quadrature.

Margins grow like log t, so losses reach 1e-400 where margins are a mere 921. Everything is
therefore carried as exp(shift) × an ordinary number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from scipy.special import expit

from theory.errors import InputError
from theory.mixing import beta_law
from toy.data import ToyData

Protocol = Literal["erm", "mixup-signed", "mixup-soft"]
DEFAULT_NODES = 48
PROTOCOLS: tuple[Protocol, ...] = ("erm", "mixup-signed", "mixup-soft")


def shifted_losses(
    margins: Float64[np.ndarray, ...], shift: Float64[np.ndarray, ...]
) -> tuple[Float64[np.ndarray, ...], Float64[np.ndarray, ...]]:
    """softplus(−m) and its slope σ(−m), both times exp(shift), for any size of m.

    Args:
        margins: m.
        shift: Broadcasts against m; 0 ≤ shift ≤ max(m, 0) keeps both results in range.

    Returns:
        (exp(shift) softplus(−m), exp(shift) σ(−m)).
    """
    # Below −700 the slope is 1 and the loss is −m, to the last bit.
    tail = np.exp(np.minimum(shift - margins, 700.0))
    plain = tail * np.exp(-shift)
    # log(1 + v) / v, which is 1 wherever v has underflowed.
    ratio = np.ones_like(plain)
    np.divide(np.log1p(plain), plain, out=ratio, where=plain > 0.0)
    return tail * ratio + np.maximum(-margins - 700.0, 0.0), tail / (1.0 + plain)


def log_losses(margins: Float64[np.ndarray, ...]) -> Float64[np.ndarray, ...]:
    """The natural logarithm of softplus(−m), elementwise; right at 1e-400 and beyond."""
    shift = np.maximum(margins, 0.0)
    return np.log(shifted_losses(margins, shift)[0]) - shift


def mix_pairs(
    first: Float64[np.ndarray, "*runs rows"],
    second: Float64[np.ndarray, "*runs n"],
    lam: Float64[np.ndarray, "*runs q"],
) -> Float64[np.ndarray, "*runs q rows n"]:
    """λ first_i + (1−λ) second_j for every λ and every pair (i, j)."""
    lam = lam[..., None, None]
    return lam * first[..., None, :, None] + (1.0 - lam) * second[..., None, None, :]


def _average(
    weights: Float64[np.ndarray, "*runs q"], values: Float64[np.ndarray, "*runs q rows n"]
) -> Float64[np.ndarray, "*runs rows n"]:
    flat = values.reshape(*values.shape[:-2], -1)
    return (weights[..., None, :] @ flat).reshape(*values.shape[:-3], *values.shape[-2:])


@dataclass(frozen=True)
class Mixing:
    """How outputs are averaged over λ and pairs, for any number of runs at once.

    Attributes:
        lam: Nodes of λ.
        weights: Their weights, summing to one.
        pair_weights: Weights of the pairs (i, j), i running over `rows`.
        rows: Which points stand first in a pair; all of them by default.
    """

    lam: Float64[np.ndarray, "*runs q"]
    weights: Float64[np.ndarray, "*runs q"]
    pair_weights: Float64[np.ndarray, "rows n"]
    rows: Any = field(default_factory=lambda: slice(None))

    def pairs(self, values: Float64[np.ndarray, "*runs n"]) -> np.ndarray:
        """The mixed values, λ first, then pairs."""
        return mix_pairs(values[..., self.rows], values, self.lam)

    def average(self, values: np.ndarray, power: int = 0, other: int = 0) -> np.ndarray:
        """E_λ λ^power (1−λ)^other values, times the weights of the pairs."""
        weights = self.weights * self.lam**power * (1.0 - self.lam) ** other
        return _average(weights, values) * self.pair_weights


def evaluate(
    protocol: Protocol,
    u: Float64[np.ndarray, "*runs n"],
    targets: Float64[np.ndarray, "*runs n"],
    mixing: Mixing,
) -> tuple[
    Float64[np.ndarray, "*runs"], Float64[np.ndarray, "*runs"], Float64[np.ndarray, "*runs n"]
]:
    """Risk and slopes of one protocol at outputs u, for any number of runs at once.

    Args:
        protocol: Which risk; "erm" does not mix.
        u: Outputs w·p_i.
        targets: t_i for "mixup-soft"; the others do not look at it.
        mixing: Of the runs.

    Returns:
        (log risk, shift, pull) with −∂risk/∂u_i = exp(shift) pull_i.
    """
    if protocol == "mixup-soft":
        shift = np.zeros(u.shape[:-1])
        mixed, labels = mixing.pairs(u), mixing.pairs(targets)
        losses, slopes = np.logaddexp(0.0, mixed) - labels * mixed, labels - expit(mixed)
    else:
        shift = np.asarray(np.maximum(u.min(-1), 0.0))
        if protocol == "erm":
            losses, slopes = shifted_losses(u, shift[..., None])
            risk, pull = losses.sum(-1) / u.shape[-1], slopes / u.shape[-1]
            return np.asarray(np.log(risk) - shift), np.asarray(-shift), pull
        losses, slopes = shifted_losses(mixing.pairs(u), shift[..., None, None, None])
    risk = mixing.average(losses).sum((-1, -2))
    # The pair (i, j) pulls i with λ and j with 1 − λ.
    pull = mixing.average(slopes, other=1).sum(-2)
    pull[..., mixing.rows] += mixing.average(slopes, power=1).sum(-1)
    return np.asarray(np.log(risk) - shift), np.asarray(-shift), pull


@lru_cache(maxsize=256)
def lobatto_rule(
    alpha: float, nodes: int
) -> tuple[Float64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """Gauss–Lobatto–Jacobi rule for λ ~ Beta(α, α): (λ, weights), `nodes` + 2 of each.

    E[φ] = (φ(0) + φ(1))/2 + α/(2(2α+1)) E_{Beta(α+1, α+1)}[(φ − chord)/(λ(1−λ))], the last by
    Gauss–Jacobi. As α → 0 the mass moves to the ends, where a plain Gauss–Jacobi rule knows the
    inner weights (of order α) only to 1e-16 absolutely; here they keep their relative accuracy.

    Raises:
        InputError: If α is not positive and finite or too large, or there is no node.
    """
    beta_law(alpha)
    a, inner = beta_law(alpha + 1.0).quadrature(nodes)
    if not np.isfinite(inner).all():
        raise InputError(
            f"alpha is {alpha:g}: too large for the quadrature over λ, choose a smaller"
        )
    inner = inner * alpha / (2.0 * (2.0 * alpha + 1.0)) / (a * (1.0 - a))
    end = (1.0 - inner.sum()) / 2.0
    return np.r_[0.0, 1.0 - a, 1.0], np.r_[end, inner, end]


@dataclass(frozen=True)
class Objective:
    """One protocol on one set, as a function of the n outputs u_i = w·p_i of the linear model.

    Attributes:
        data: The set.
        protocol: "erm", "mixup-signed" or "mixup-soft".
        alpha: Beta's parameter; ignored by "erm".
        nodes: Quadrature nodes for λ. By default 48; for "mixup-signed" as many as the spread of
            the margins at w needs.
        diagonal: Whether the pairs i = j belong to the average, as in the paper's 1/n² Σ_ij.

    Raises:
        InputError: If alpha is not positive, or one of the other values is unknown or too small.
    """

    data: ToyData
    protocol: Protocol = "erm"
    alpha: float = 1.0
    nodes: int | None = None
    diagonal: bool = True

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(
                f"unknown protocol {self.protocol!r}; choose one of {', '.join(PROTOCOLS)}"
            )
        if not self.diagonal and len(self.data.y) < 2:
            raise InputError("without the diagonal at least two points are needed")
        lobatto_rule(self.alpha, DEFAULT_NODES if self.nodes is None else self.nodes)

    @cached_property
    def points(self) -> Float64[np.ndarray, "n d"]:
        """p_i: z_i where labels are absorbed, x_i for "mixup-soft"."""
        return self.data.x if self.protocol == "mixup-soft" else self.data.signed

    @cached_property
    def pair_weights(self) -> Float64[np.ndarray, "n n"]:
        """The weight of the pair (i, j); the sum is one."""
        n = len(self.data.y)
        weights = np.ones((n, n))
        if not self.diagonal:
            np.fill_diagonal(weights, 0.0)
        return weights / weights.sum()

    @cached_property
    def targets(self) -> Float64[np.ndarray, " n"]:
        """t_i in {0, 1}: the probability that label-mixing starts from; all 1 if absorbed."""
        return (
            (1.0 + self.data.y) / 2.0
            if self.protocol == "mixup-soft"
            else np.ones_like(self.data.y)
        )

    @cached_property
    def _whole(self) -> Mixing:
        return self.mixing()

    def mixing(self) -> Mixing:
        """The average over all pairs with the set number of nodes."""
        return Mixing(
            *lobatto_rule(self.alpha, DEFAULT_NODES if self.nodes is None else self.nodes),
            self.pair_weights,
        )

    def _mixing_at(self, u: Float64[np.ndarray, " n"]) -> Mixing:
        """The same average with the nodes and the pairs that signed Mixup needs at outputs u."""
        if self.protocol != "mixup-signed":
            return self._whole
        # e^{−ku} needs of the order of √k nodes, which crowd at the ends like 1/q².
        nodes = self.nodes
        if nodes is None:
            nodes = min(512, 16 * int(1.0 + np.sqrt(np.ptp(u)) * 3.0 / 16.0))
        rule = lobatto_rule(self.alpha, nodes)
        # A pair of two margins 45 above the smallest weighs e^−45 of the whole: below rounding.
        near = u < u.min() + 45.0
        if near.all():
            return Mixing(*rule, self.pair_weights)
        # λ and 1 − λ have one law, so (i, j) at twice the weight stands for (j, i), j not near.
        weights = self.pair_weights[near] * np.where(near, 1.0, 2.0)
        return Mixing(*rule, weights, np.flatnonzero(near))

    def evaluate(self, w: Float64[np.ndarray, " d"]) -> tuple[float, float, np.ndarray]:
        """The risk and its slopes at w, free of underflow.

        Returns:
            (log of the risk, shift, pull) where −∂risk/∂u_i = exp(shift) pull_i for the outputs
            u = points @ w, so that −∇risk(w) = exp(shift) pull @ points.
        """
        u = self.points @ w
        log_risk, shift, pull = evaluate(self.protocol, u, self.targets, self._mixing_at(u))
        return float(log_risk), float(shift), pull

    def log_risks(self, w: Float64[np.ndarray, "times d"]) -> Float64[np.ndarray, " times"]:
        """The logarithm of the risk at every row of w."""
        if self.protocol == "erm":
            u = w @ self.points.T
            return evaluate("erm", u, np.broadcast_to(self.targets, u.shape), self._whole)[0]
        return np.array([self.evaluate(row)[0] for row in w])

    def hessian(self, w: Float64[np.ndarray, " d"]) -> tuple[float, Float64[np.ndarray, "d d"]]:
        """(shift, H) with ∇²risk(w) = exp(shift) H = exp(shift) Pᵀ A P.

        A_ij collects what the mixed pairs put on the outputs (u_i, u_j).
        """
        u = self.points @ w
        hard = self.protocol != "mixup-soft"
        shift = np.asarray(np.maximum(u.min(), 0.0) if hard else 0.0)
        mixing = self._mixing_at(u)
        mixed = u if self.protocol == "erm" else mixing.pairs(u)
        slopes = shifted_losses(mixed, shift)[1]
        curvature = slopes * (1.0 - np.exp(-shift) * slopes)
        if self.protocol == "erm":
            return -float(shift), (self.points.T * (curvature / u.size)) @ self.points
        a = np.diag(mixing.average(curvature, other=2).sum(0))
        a[mixing.rows] += mixing.average(curvature, power=1, other=1)
        a[:, mixing.rows] += mixing.average(curvature, power=1, other=1).T
        own = mixing.average(curvature, power=2).sum(1)
        index = np.arange(u.size)[mixing.rows]
        a[index, index] += own
        return -float(shift), self.points.T @ a @ self.points

    def smoothness(self) -> float:
        """L = λ_max(E[p̃ p̃ᵀ])/4, the Lipschitz constant of the gradient (softplus'' ≤ 1/4).

        For a mixed point E[p̃ p̃ᵀ] follows from E[λ²] and E[λ(1−λ)], no quadrature.
        """
        p = self.points
        second = p.T @ p / len(p)
        if self.protocol != "erm":
            square = beta_law(self.alpha).moment(2)
            w = self.pair_weights
            own = p.T @ (w.sum(0)[:, None] * p)
            other = p.T @ w @ p
            second = 2.0 * square * own + 2.0 * (0.5 - square) * other
        return float(np.linalg.eigvalsh(second)[-1] / 4.0)
