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

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float64

from theory.errors import InputError, unknown
from theory.mixing import beta_law
from toy import pairs
from toy.data import ToyData
from toy.pairs import Mixing

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


def slopes(
    protocol: Protocol,
    u: Float64[np.ndarray, "*runs n"],
    labels: Float64[np.ndarray, "*runs n"],
    mixing: Mixing,
) -> tuple[Float64[np.ndarray, "*runs"], Float64[np.ndarray, "*runs n"]]:
    """Slopes of one protocol's risk at outputs u, for any number of runs at once.

    Args:
        protocol: Which risk; "erm" does not mix.
        u: Outputs w·p_i.
        labels: `Objective.labels` for "mixup-soft"; the others do not look at it.
        mixing: Of the runs.

    Returns:
        (shift, pull) with −∂risk/∂u_i = exp(shift) pull_i.
    """
    if protocol == "mixup-soft":
        shift, pull = pairs.pull(-u, mixing)
        return np.zeros_like(shift), labels - np.exp(shift)[..., None] * pull
    if protocol == "mixup-signed":
        return pairs.pull(u, mixing)
    shift = np.asarray(np.maximum(u.min(-1), 0.0))
    return np.asarray(-shift), shifted_losses(u, shift[..., None])[1] / u.shape[-1]


@dataclass(frozen=True)
class Objective:
    """One protocol on one set, as a function of the n outputs u_i = w·p_i of the linear model.

    Attributes:
        data: The set.
        protocol: "erm", "mixup-signed" or "mixup-soft".
        alpha: Beta's parameter; ignored by "erm".
        nodes: Quadrature nodes for λ; by default as many as the outputs at w need.
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
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if not self.diagonal and len(self.data.y) < 2:
            raise InputError("without the diagonal at least two points are needed")
        self.mixing()

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
    def labels(self) -> Float64[np.ndarray, " n"]:
        """c with E[t_λ f_λ] = c·u over pairs and λ: what soft labels add to the hard-label risk."""
        square = beta_law(self.alpha).moment(2)
        return 2.0 * (
            square * self.targets / len(self.targets)
            + (0.5 - square) * self.pair_weights @ self.targets
        )

    def mixing(self, nodes: int = DEFAULT_NODES) -> Mixing:
        """The average over all pairs, with the set number of nodes or else the given one."""
        return Mixing.beta(self.alpha, nodes if self.nodes is None else self.nodes, self.diagonal)

    def _mixing_at(self, margins: Float64[np.ndarray, " n"]) -> Mixing:
        """The average with as many nodes as these margins need for 1e-13."""
        if self.nodes is not None or self.protocol == "erm":
            return self.mixing()
        # e^{−ku} needs of the order of √k nodes, which crowd at the ends like 1/q².
        needed = max(16.0 / np.log(pairs.ellipse(margins)), 10.0 + 3.0 * np.sqrt(np.ptp(margins)))
        return self.mixing(min(512, 8 * int(1.0 + needed / 8.0)))

    def log_risk(self, w: Float64[np.ndarray, " d"]) -> float:
        """The natural logarithm of the risk at w, free of underflow."""
        u = self.points @ w
        if self.protocol == "erm":
            shift = np.asarray(np.maximum(u.min(), 0.0))
            return float(np.log(shifted_losses(u, shift)[0].mean()) - shift)
        if self.protocol == "mixup-signed":
            return float(pairs.log_risk(u, self._mixing_at(u)))
        hard = float(np.exp(pairs.log_risk(-u, self._mixing_at(-u))))
        return float(np.log(hard - u @ self.labels))

    def slopes(self, w: Float64[np.ndarray, " d"]) -> tuple[float, Float64[np.ndarray, " n"]]:
        """(shift, pull) with −∇risk(w) = exp(shift) pull @ points, free of underflow."""
        u = self.points @ w
        margins = -u if self.protocol == "mixup-soft" else u
        shift, pull = slopes(self.protocol, u, self.labels, self._mixing_at(margins))
        return float(shift), pull

    def gradient(self, w: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, " d"]:
        """∇risk(w), which underflows where the risk does."""
        shift, pull = self.slopes(w)
        return -np.exp(shift) * (pull @ self.points)

    def hessian(self, w: Float64[np.ndarray, " d"]) -> tuple[float, Float64[np.ndarray, "d d"]]:
        """(shift, H) with ∇²risk(w) = exp(shift) H."""
        u = self.points @ w
        if self.protocol == "erm":
            shift = np.asarray(np.maximum(u.min(), 0.0))
            slope = shifted_losses(u, shift)[1]
            weights = slope * (1.0 - np.exp(-shift) * slope) / u.size
            return -float(shift), (self.points.T * weights) @ self.points
        margins = -u if self.protocol == "mixup-soft" else u
        return pairs.hessian(self.points, margins, self._mixing_at(margins))

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
