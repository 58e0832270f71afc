"""Normalised margin of a two-layer ReLU network, which is 2-homogeneous in its parameters.

f(x) = a·relu(V x + b) satisfies f_{cθ} = c² f_θ, so margins are compared as min_i y_i f(x_i)/‖θ‖²
(Lyu and Li, ICLR 2020). Under gradient flow on the logistic risk L their smoothed version
−log(exp(nL) − 1)/‖θ‖² never falls once nL < log 2, and the loss goes to zero; with soft-label
Mixup the loss has a positive minimum, and the margin stops where that is.

There is no "mixup-signed" here: it mixes y x, and y f(x) = f(y x) holds for odd f only, which a
ReLU network with biases is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.special import expit

from theory.errors import InputError
from toy.data import ToyData
from toy.objective import shifted_losses
from toy.pairs import lobatto_rule


@dataclass(frozen=True)
class ReluPath:
    """A training path of the network, one entry a recorded step.

    Attributes:
        log_t: Natural logarithm of the accumulated step sizes on L, the flow's time.
        norm: ‖θ‖.
        log_loss: Natural logarithm of the training objective.
        log_slope: Natural logarithm of ‖∇L‖.
        margin: Normalised margin min_i y_i f(x_i)/‖θ‖².
        smoothed: Lyu and Li's smoothed margin −log(exp(nL) − 1)/‖θ‖² of the clean logistic risk.
    """

    log_t: Float64[np.ndarray, " records"]
    norm: Float64[np.ndarray, " records"]
    log_loss: Float64[np.ndarray, " records"]
    log_slope: Float64[np.ndarray, " records"]
    margin: Float64[np.ndarray, " records"]
    smoothed: Float64[np.ndarray, " records"]


def network(
    theta: Float64[np.ndarray, "width columns"], x: Float64[np.ndarray, "n d"]
) -> Float64[np.ndarray, " n"]:
    """f(x) = Σ_k a_k relu(v_k·x + b_k), row k of `theta` holding (v_k, b_k, a_k)."""
    return np.maximum(x @ theta[:, :-2].T + theta[:, -2], 0.0) @ theta[:, -1]


@dataclass(frozen=True)
class _Sample:
    """Points with target probabilities and weights: the data, or all its mixtures."""

    x: Float64[np.ndarray, "n d"]
    targets: Float64[np.ndarray, " n"]
    weights: Float64[np.ndarray, " n"]


def mixtures(data: ToyData, alpha: float, nodes: int) -> _Sample:
    """Every pair at every node of λ; λ and 1 − λ share a law, so i < j stands for i > j too."""
    rule, rule_weights = lobatto_rule(alpha, nodes)
    n = len(data.y)
    i, j = np.triu_indices(n, 1)
    lam = np.r_[np.repeat(rule, i.size), np.ones(n)]
    weights = np.r_[np.repeat(2.0 * rule_weights, i.size), np.ones(n)] / n**2
    i = np.r_[np.tile(i, rule.size), np.arange(n)]
    j = np.r_[np.tile(j, rule.size), np.arange(n)]
    x = lam[:, None] * data.x[i] + (1.0 - lam)[:, None] * data.x[j]
    return _Sample(x, (1.0 + lam * data.y[i] + (1.0 - lam) * data.y[j]) / 2.0, weights)


def log_objective(
    theta: Float64[np.ndarray, "width columns"], sample: _Sample
) -> tuple[float, Float64[np.ndarray, "width columns"]]:
    """log of Σ weights (softplus(f) − target f) and its gradient, without underflow.

    Targets 0 and 1 everywhere are hard labels, whose losses softplus(−m) are carried as
    exp(−shift) × an ordinary number.
    """
    hidden = np.maximum(sample.x @ theta[:, :-2].T + theta[:, -2], 0.0)
    f = hidden @ theta[:, -1]
    sign = 2.0 * sample.targets - 1.0
    shift = np.zeros(())
    if (np.abs(sign) == 1.0).all():
        shift = np.asarray(np.maximum((sign * f).min(), 0.0))
        losses, slopes = shifted_losses(sign * f, shift)
        pull = sign * slopes
    else:
        losses = np.logaddexp(0.0, f) - sample.targets * f
        pull = sample.targets - expit(f)
    total = float(sample.weights @ losses)
    pull = -sample.weights * pull / total
    gradient = np.empty_like(theta)
    back = pull[:, None] * theta[:, -1] * (hidden > 0.0)
    gradient[:, :-2] = back.T @ sample.x
    gradient[:, -2] = back.sum(0)
    gradient[:, -1] = pull @ hidden
    return float(np.log(total) - shift), gradient


def train_relu(
    data: ToyData,
    protocol: Literal["erm", "mixup-soft"] = "erm",
    alpha: float = 1.0,
    *,
    width: int = 16,
    steps: int = 40_000,
    pace: float = 2.0,
    nodes: int = 4,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> ReluPath:
    """Gradient descent on the objective L with the loss-based step pace/(L ‖θ‖²).

    The step follows Lyu and Li (ICLR 2020): L's curvature is about L ‖θ‖² |x|², so this step keeps
    its relation to the stability limit while L falls by tens of decades. All pairs are mixed, λ
    at the nodes of a rule.

    Args:
        data: Training set; it need not be linearly separable.
        protocol: "erm" or "mixup-soft".
        alpha: Beta's parameter.
        width: Hidden units.
        steps: Steps; about 200 records are kept, evenly spaced in the step count.
        pace: The number in that step size.
        nodes: Interior quadrature nodes of λ.
        seed: Of the initial weights, N(0, 1/4) each.
        progress: Called at every record with the step count.

    Raises:
        InputError: If a number is out of its range.
    """
    if min(width, steps, nodes) < 1 or not 0.0 < pace < np.inf:
        raise InputError("width, steps and nodes must be at least 1, and the pace positive")
    clean = _Sample(data.x, (1.0 + data.y) / 2.0, np.full(len(data.y), 1.0 / len(data.y)))
    sample = clean if protocol == "erm" else mixtures(data, alpha, nodes)
    rng = np.random.default_rng(seed)
    theta = 0.5 * rng.standard_normal((width, data.x.shape[1] + 2))
    log_t = -np.inf
    rows, every = [], max(1, steps // 200)
    for step in range(1, steps + 1):
        value, gradient = log_objective(theta, sample)
        square = float((theta**2).sum())
        if step % every == 0 or step == steps:
            slope = value + np.log(np.linalg.norm(gradient))
            rows.append((log_t, square**0.5, value, slope, *_margins(theta, data, clean)))
            if progress is not None:
                progress(step)
        theta = theta - pace / square * gradient
        log_t = float(np.logaddexp(log_t, np.log(pace / square) - value))
    return ReluPath(*np.array(rows).T)


def _margins(theta: np.ndarray, data: ToyData, clean: _Sample) -> tuple[float, float]:
    """Normalised and smoothed normalised margin."""
    square = float((theta**2).sum())
    total = log_objective(theta, clean)[0] + np.log(len(data.y))
    # −log(e^v − 1) with v = e^total, which may underflow.
    smoothed = -np.log(np.expm1(np.exp(total))) if total > -30.0 else -total
    return float((data.y * network(theta, data.x)).min()) / square, smoothed / square
