"""Gradient descent, SGD, heavy-ball momentum and Adam on many runs at once.

A run is an objective with a seed; all runs of a call share their shapes and advance together as
one array computation, so a sweep over seeds and α costs little more than its arithmetic. λ is
either integrated exactly over all pairs, or drawn once a step with a partner for every point, as
Mixup does (Zhang et al., ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import expit

from theory.errors import InputError, unknown
from toy.objective import Objective, slopes
from toy.pairs import Mixing

Algorithm = Literal["gd", "sgd", "momentum", "adam"]
ALGORITHMS: tuple[Algorithm, ...] = ("gd", "sgd", "momentum", "adam")

BLOCK = 64
"""Steps for which random numbers are drawn at once, run by run."""

Draw = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""λ (runs), the points used (runs, batch), None for all in order, and their partners."""


@dataclass(frozen=True)
class Recipe:
    """How to descend.

    Attributes:
        algorithm: "gd" (full batch), "sgd", "momentum" (heavy ball, full batch) or "adam" (full
            batch, β = (0.9, 0.999), ε = 1e-8).
        steps: Number of steps.
        step: Step size for every run; by default what `step_limit` suggests for each.
        sampled: Draw λ and partners every step, instead of the exact expectation.
        batch: Points in a step of "sgd", drawn with replacement.
        momentum: Heavy-ball coefficient in [0, 1).
        records: Number of recorded steps, evenly spaced in log(step), the last one among them.

    Raises:
        InputError: If a value is out of its range.
    """

    algorithm: Algorithm = "gd"
    steps: int = 10_000
    step: float | None = None
    sampled: bool = False
    batch: int = 4
    momentum: float = 0.9
    records: int = 100

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise unknown("algorithm", self.algorithm, ALGORITHMS)
        if self.step is not None and not (np.isfinite(self.step) and self.step > 0):
            raise InputError(f"the step size is {self.step}: choose a positive number")
        if min(self.steps, self.batch, self.records) < 1 or not 0.0 <= self.momentum < 1.0:
            raise InputError("steps, batch and records must be at least 1, momentum in [0, 1)")


@dataclass(frozen=True)
class Paths:
    """Recorded weights of several runs.

    Attributes:
        steps: Step counts at the records.
        time: The gradient flow's time that each record stands for: steps × step size (divided by
            1 − momentum for the heavy ball); for Adam, which follows no flow, just that product.
        w: Weights.
    """

    steps: Int64[np.ndarray, " records"]
    time: Float64[np.ndarray, "records runs"]
    w: Float64[np.ndarray, "records runs d"]


def step_limit(objective: Objective, recipe: Recipe) -> tuple[float, float]:
    """(the largest stable step size, the suggested one) for a smooth convex risk.

    Gradient descent is stable below 2/L, the heavy ball below 2(1 + β)/L; SGD's L is that of its
    worst single point, max ‖p_i‖²/4. The suggestion is 1/L, for the heavy ball (1 − β)/L: at larger
    steps it overshoots to a norm from which the direction turns only after exponential time. Adam's
    step does not scale with the gradient: no limit.
    """
    if recipe.algorithm == "adam":
        return np.inf, 0.01
    smoothness = objective.smoothness()
    if recipe.algorithm == "sgd":
        smoothness = float((objective.points**2).sum(1).max() / 4.0)
    beta = recipe.momentum if recipe.algorithm == "momentum" else 0.0
    return 2.0 * (1.0 + beta) / smoothness, (1.0 - beta) / smoothness


def step_sizes(objectives: Sequence[Objective], recipe: Recipe) -> Float64[np.ndarray, " runs"]:
    """The step of each run: the recipe's, or the one that is suggested for its objective.

    Raises:
        InputError: If the recipe's step is past the stability limit.
    """
    limits = [step_limit(objective, recipe) for objective in objectives]
    if recipe.step is None:
        return np.array([suggested for _, suggested in limits])
    largest, suggested = min(limits)
    if recipe.step > largest:
        raise InputError(
            f"step size {recipe.step:g} is past the stability limit "
            f"{'2(1 + β)/L' if recipe.algorithm == 'momentum' else '2/L'} = {largest:.4g} of "
            f"{recipe.algorithm}; {suggested:.4g} is a safe choice"
        )
    return np.full(len(limits), recipe.step)


def draws(objectives: Sequence[Objective], seeds: Sequence[int], recipe: Recipe) -> Iterator[Draw]:
    """Endless draws of (λ, points, partners), one a step; each run has its own generator.

    Partners are uniform over the whole sample, the point itself included, so that the expected
    gradient is that of the n² average.
    """
    n = len(objectives[0].data.y)
    whole = recipe.algorithm != "sgd"
    size = n if whole else recipe.batch
    generators = [np.random.default_rng(seed) for seed in seeds]
    runs = len(generators)
    if runs * size * BLOCK > 2**27:
        raise InputError(
            f"a batch of {size} points in {runs} runs asks for {runs * size * BLOCK:.2g} random "
            f"numbers at once; choose at most {2**27 // (BLOCK * runs)} points"
        )
    lam = np.ones((BLOCK, runs))
    partner = np.broadcast_to(np.arange(size) % n, (BLOCK, runs, size)).copy()
    index: Any = [None] * BLOCK if whole else np.empty_like(partner)
    while True:
        for r, (objective, generator) in enumerate(zip(objectives, generators, strict=True)):
            if objective.protocol != "erm":
                lam[:, r] = generator.beta(objective.alpha, objective.alpha, BLOCK)
                partner[:, r] = generator.integers(n, size=(BLOCK, size))
            if not whole:
                index[:, r] = generator.integers(n, size=(BLOCK, size))
        yield from zip(lam, index, partner, strict=True)


def _exact_gradient(objectives: Sequence[Objective]) -> Callable[[np.ndarray], np.ndarray]:
    first = objectives[0]
    points = np.stack([o.points for o in objectives])
    labels = np.stack([o.labels for o in objectives])
    rules = [o.mixing() for o in objectives]
    lam, weights = (
        np.stack([getattr(rule, name) for rule in rules]) for name in ("lam", "weights")
    )
    mixing = Mixing(lam, weights, first.diagonal)

    def gradient(w: np.ndarray) -> np.ndarray:
        u = (points @ w[..., None])[..., 0]
        shift, pull = slopes(first.protocol, u, labels, mixing)
        return -np.exp(shift)[:, None] * (pull[:, None, :] @ points)[:, 0]

    return gradient


def sampled_gradient(
    objectives: Sequence[Objective], stream: Iterator[Draw]
) -> Callable[[np.ndarray], np.ndarray]:
    """Gradients at w (runs, d) from one draw a call; unbiased for the exact expectation.

    The draws of a run with protocol "erm" keep λ = 1, so it sees its own points only.
    """
    points = np.stack([o.points for o in objectives])
    targets = np.stack([o.targets for o in objectives])
    runs, n = targets.shape
    offset = n * np.arange(runs)[:, None]
    everything = np.arange(runs * n).reshape(runs, n)
    t, hard = targets.ravel(), bool((targets == 1.0).all())

    def gradient(w: np.ndarray) -> np.ndarray:
        lam, index, partner = next(stream)
        own, other = lam[:, None], 1.0 - lam[:, None]
        i, j = everything if index is None else index + offset, partner + offset
        u = (points @ w[..., None]).ravel()
        first = u.reshape(runs, n) if index is None else u[i]
        mixed = 1.0 if hard else own * t[i] + other * t[j]
        residual = mixed - expit(own * first + other * u[j])
        pull = np.bincount(j.ravel(), (other * residual).ravel(), runs * n)
        if index is None:
            pull += (own * residual).ravel()
        else:
            pull += np.bincount(i.ravel(), (own * residual).ravel(), runs * n)
        return -(pull.reshape(runs, 1, n) @ points)[:, 0] / i.shape[1]

    return gradient


def _updates(recipe: Recipe, sizes: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """The algorithm as a function of (gradient, step number) that returns what to add to w."""
    sizes = sizes[:, None]
    first: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0

    def plain(gradient: np.ndarray, _: int) -> np.ndarray:
        return -sizes * gradient

    def heavy_ball(gradient: np.ndarray, _: int) -> np.ndarray:
        nonlocal first
        first = recipe.momentum * first + gradient
        return -sizes * first

    def adam(gradient: np.ndarray, k: int) -> np.ndarray:
        nonlocal first, second
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1.0 - 0.999**k)) + 1e-8
        return -sizes * first / (1.0 - 0.9**k) / corrected

    return {"gd": plain, "sgd": plain, "momentum": heavy_ball, "adam": adam}[recipe.algorithm]


def descend(
    objectives: Sequence[Objective],
    recipe: Recipe,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Paths:
    """Run every objective from w = 0 under one recipe, all at once.

    Args:
        objectives: One a run; they share n, d, protocol, nodes and diagonal, not data or α.
        recipe: How to descend.
        seeds: One a run, for the draws; by default 0, 1, ….
        progress: Called at every record with the step count.

    Raises:
        InputError: If the objectives do not match, or the step size is past the stability limit.
    """
    seeds = range(len(objectives)) if seeds is None else seeds
    shapes = {(o.points.shape, o.protocol, o.nodes, o.diagonal) for o in objectives}
    if len(shapes) != 1 or len(seeds) != len(objectives):
        raise InputError("runs of one call need one shape, protocol and rule, and one seed each")
    sizes = step_sizes(objectives, recipe)
    update = _updates(recipe, sizes)
    if recipe.sampled or recipe.algorithm == "sgd":
        if not objectives[0].diagonal:
            raise InputError("sampled partners include the point itself; keep the diagonal")
        gradient = sampled_gradient(objectives, draws(objectives, seeds, recipe))
    else:
        gradient = _exact_gradient(objectives)
    spaced = np.geomspace(recipe.steps, 1, recipe.records)
    marks = np.unique(np.round(spaced).astype(np.int64))
    w = np.zeros((len(objectives), objectives[0].points.shape[1]))
    kept, done = [], 0
    for mark in marks:
        for k in range(done + 1, int(mark) + 1):
            w = w + update(gradient(w), k)
        done = int(mark)
        kept.append(w)
        if progress is not None:
            progress(done)
    pace = 1.0 - recipe.momentum if recipe.algorithm == "momentum" else 1.0
    return Paths(marks, marks[:, None] * sizes / pace, np.stack(kept))
