"""Decision boundaries of a small network on two moons or rings: ERM, Mixup, MixupE.

The figure of Zhang et al. (ICLR 2018, figure 1b) with MixupE (Zou, Verma et al., UAI 2023) beside:
P(y = 1 | x) over the plane after training each objective on the same points from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import q_hat
from theory.losses import loss
from theory.mixing import relabelled_law
from toy.data import ToyData

Training = Literal["erm", "mixup", "mixupe"]
TRAININGS: tuple[Training, ...] = get_args(Training)


@dataclass(frozen=True)
class Boundary:
    """A trained network seen over a square grid.

    Attributes:
        axis: Grid coordinates, the same for both axes.
        probability: P(y = 1 | x); rows follow the second coordinate.
        train_accuracy: In [0, 1].
        test_accuracy: In [0, 1], on the held-out set.
        train_loss: Clean logistic loss on the training points, nats.
        test_loss: The same on the held-out set.
        confidence: Mean of max(P, 1 − P) on the held-out set.
        slope: Mean ‖∇_x P‖ over the grid, per unit of the standardised coordinates.
    """

    axis: Float64[np.ndarray, " side"]
    probability: Float64[np.ndarray, "side side"]
    train_accuracy: float
    test_accuracy: float
    train_loss: float
    test_loss: float
    confidence: float
    slope: float


def _need_plane(data: ToyData) -> None:
    if data.x.shape[1] != 2:
        raise InputError(f"{data.name} has {data.x.shape[1]} dimensions; boundaries need 2")


def standardise(train: ToyData, test: ToyData) -> tuple[ToyData, ToyData]:
    """Both sets in coordinates that give the training set mean 0, as MixupE asks, variance 1.

    Raises:
        InputError: If the points are not in the plane, or a coordinate is constant.
    """
    _need_plane(train)
    mean, scale = train.x.mean(axis=0), train.x.std(axis=0)
    if (scale == 0.0).any():
        raise InputError(f"{train.name}: a coordinate is constant; remove it")
    return (
        ToyData(train.name, (train.x - mean) / scale, train.y),
        ToyData(test.name, (test.x - mean) / scale, test.y),
    )


def training_loss(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    training: Training,
    alpha: float,
    eta: float,
    rng: np.random.Generator,
) -> Tensor:
    """One step's objective; Mixup draws one λ ~ Beta(α, α) and a permutation.

    MixupE is η̂ (L_mix + η E[a] mean|q̂|) with q̂ = (y − g)ᵀ f on the clean points, E[a] of
    Theorem 1's law, and η̂ = |L_mix| / |L_mix + η E[a] mean|q̂|| held constant.
    """
    if training == "erm":
        return loss(model(x), targets, "sigmoid").mean()
    lam = rng.beta(alpha, alpha)
    partner = torch.from_numpy(rng.permutation(len(x)))
    mixed = lam * x + (1.0 - lam) * x[partner]
    mixed_targets = lam * targets + (1.0 - lam) * targets[partner]
    risk = loss(model(mixed), mixed_targets, "sigmoid").mean()
    if training == "mixup":
        return risk
    penalty = q_hat(model(x), targets, "sigmoid").abs().mean()
    total = risk + eta * relabelled_law(alpha).moment(1) * penalty
    return (risk.detach() / total.detach()).abs() * total


def train_boundary(
    train: ToyData,
    test: ToyData,
    training: Training,
    *,
    alpha: float = 1.0,
    eta: float = 1.0,
    steps: int = 1500,
    width: int = 64,
    side: int = 100,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Boundary:
    """Train a 2-width-width-1 ReLU network by full-batch Adam and look at it over the plane.

    Args:
        train: Training points, standardised.
        test: Held-out points in the same coordinates.
        training: "erm", "mixup" or "mixupe".
        alpha: Beta's parameter.
        eta: Strength of MixupE's penalty.
        steps: Adam steps of size 0.01.
        width: Hidden units a layer.
        side: Grid points a side, over the training points and 0.6 beyond.
        seed: Of initial weights and of mixing.
        progress: Called with the step count now and then.

    Raises:
        InputError: If the points are not in the plane, or a number is out of its range.
    """
    _need_plane(train)
    if min(steps, width) < 1 or side < 2 or not 0.0 <= eta < np.inf:
        raise InputError(
            "steps and width must be at least 1, side at least 2, eta finite and not negative"
        )
    relabelled_law(alpha)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        ).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    x, targets = _tensors(train)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        training_loss(model, x, targets, training, alpha, eta, rng).backward()
        optimiser.step()
        if progress is not None and (step % 50 == 0 or step == steps):
            progress(step)
    return _survey(model, train, test, side)


def _tensors(data: ToyData) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.x), torch.from_numpy((1.0 + data.y[:, None]) / 2.0)


def _survey(model: nn.Module, train: ToyData, test: ToyData, side: int) -> Boundary:
    reach = float(np.abs(train.x).max()) + 0.6
    axis = np.linspace(-reach, reach, side)
    grid = torch.from_numpy(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)).requires_grad_()
    probability = model(grid).sigmoid()
    (gradient,) = torch.autograd.grad(probability.sum(), grid)
    measured = []
    for data in (train, test):
        x, targets = _tensors(data)
        with torch.no_grad():
            logits = model(x)
        correct = ((logits > 0) == (targets > 0.5)).double().mean()
        measured.append((correct.item(), loss(logits, targets, "sigmoid").mean().item()))
    return Boundary(
        axis=axis,
        probability=probability.detach().numpy().reshape(side, side),
        train_accuracy=measured[0][0],
        test_accuracy=measured[1][0],
        train_loss=measured[0][1],
        test_loss=measured[1][1],
        confidence=logits.abs().sigmoid().mean().item(),
        slope=gradient.norm(dim=1).mean().item(),
    )
