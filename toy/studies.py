"""The toy's studies: a frozen dataclass of settings, and a function from it to a plain record.

A record is a dict of numbers, strings and lists that JSON can hold; the figures draw nothing but
such records, so a saved one can be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from theory.errors import InputError
from toy.boundary import TRAININGS, standardise, train_boundary
from toy.data import ToyData, load
from toy.descent import ALGORITHMS, Algorithm, Recipe, descend, step_limit, step_sizes
from toy.flow import Trajectory, describe, gaps, gradient_flow
from toy.homogeneous import train_relu
from toy.max_margin import MaxMargin, max_margin, separability
from toy.minimiser import minimise
from toy.objective import PROTOCOLS, Objective, Protocol
from toy.rates import late_rates, mixing_rate

Record = dict[str, Any]
Progress = Callable[[str], object]


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class Common:
    """Flags of every study."""

    data: str = "skewed"
    """skewed, soudry, clouds, moons, rings, digits, cancer, or a .csv file (label last)"""
    points: int = 40
    """Points of clouds, moons and rings"""
    dimension: int = 2
    """Dimension of clouds"""
    margin: float = 1.0
    """Margin of clouds"""
    seed: int = 0
    """Of data, weights and draws"""
    intercept: bool = False
    """Add a constant feature, so that the line need not pass through the origin"""
    out: Path = Path("runs/toy")
    """Folder for the JSON record and the figures"""
    debug: bool = False
    """Show the traceback of an error"""

    def load(self) -> ToyData:
        """The chosen set.

        Raises:
            InputError: If the seed is out of range, or as `toy.data.load`.
        """
        if not 0 <= self.seed < 2**32:  # what NumPy, PyTorch and scikit-learn all take
            raise InputError(
                f"seed {self.seed} would be used: --seed and the seeds counted on from it must be "
                "at least 0 and below 2^32"
            )
        data = load(self.data, self.seed, self.points, self.dimension, self.margin)
        return data.with_bias() if self.intercept else data


@dataclass(frozen=True)
class Bias(Common):
    """Gradient flow of ERM, signed and soft-label Mixup in log time: the talk's toy figure."""

    alpha: float = 1.0
    """α of Beta(α, α)"""
    log10_t: float = 30.0
    """Decimal logarithm of the final time, up to 400"""
    times: int = 200
    """Times reported"""
    diagonal: bool = True
    """Keep the pairs i = j"""
    rates: bool = True
    """Fit the rates, on flows to 1e100 and beyond"""


@dataclass(frozen=True)
class Descent(Common):
    """Gradient descent, SGD, momentum and Adam side by side on one objective."""

    protocol: Protocol = "mixup-signed"
    """erm, mixup-signed or mixup-soft"""
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    """Any of gd, sgd, momentum, adam"""
    alpha: float = 1.0
    """α of Beta(α, α)"""
    steps: int = 20_000
    """Steps"""
    step: float | None = None
    """Step size; by default one that is safe for each algorithm"""
    sampled: bool = True
    """Draw λ and a partner every step; otherwise the exact expectation (SGD always draws)"""
    batch: int = 4
    """Batch of SGD"""


@dataclass(frozen=True)
class Soft(Common):
    """Soft-label Mixup's finite minimiser against α and the margin."""

    alphas: tuple[float, ...] = (
        *(1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03),
        *(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
    )
    """α of Beta(α, α)"""
    margins: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
    """Margins to which the classes are moved"""
    margin_alpha: float = 1.0
    """α for the margins"""


@dataclass(frozen=True)
class Sweep(Common):
    """Many seeds × α at once: how fast the margin gap closes, with standard errors."""

    data: Literal["clouds", "skewed", "soudry"] = "clouds"
    """A set that the seed draws"""
    seeds: int = 64
    """Data sets and draws for each α"""
    alphas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """α of Beta(α, α)"""
    steps: int = 10_000
    """Steps"""
    soft: bool = False
    """Mix labels too (mixup-soft) instead of mixup-signed"""
    algorithm: Algorithm = "gd"
    """gd, sgd, momentum or adam"""
    sampled: bool = True
    """Draw λ and a partner every step; otherwise the exact expectation, which costs all pairs"""


@dataclass(frozen=True)
class Relu(Common):
    """Normalised margin of a two-layer homogeneous ReLU network."""

    data: str = "rings"
    """Any set; it need not be linearly separable"""
    alpha: float = 1.0
    """α of Beta(α, α)"""
    width: int = 16
    """Hidden units"""
    steps: int = 40_000
    """Steps of ERM; Mixup, whose step costs all pairs, takes a quarter of them"""


@dataclass(frozen=True)
class Boundary(Common):
    """Decision boundaries of a small network under ERM, Mixup and MixupE."""

    data: Literal["moons", "rings"] = "moons"
    """A set whose held-out points another seed can draw"""
    points: int = 100
    """Training points"""
    alpha: float = 1.0
    """α of Beta(α, α)"""
    eta: float = 1.0
    """Strength of MixupE's penalty"""
    steps: int = 1500
    """Adam steps"""
    side: int = 100
    """Grid points a side"""


@dataclass(frozen=True)
class Separable(Common):
    """Is a set linearly separable? The verdict of a linear program, with its certificate."""

    data: str = "cancer"
    """As for the other studies"""


def _record(settings: Common, **results: Any) -> Record:
    flags = {
        name: value for name, value in asdict(settings).items() if name not in ("out", "debug")
    }
    return {"study": type(settings).__name__.lower(), "settings": flags, **results}


def _reference(reference: MaxMargin) -> Record:
    return {
        "direction": reference.direction.tolist(),
        "margin": reference.margin,
        "support": np.flatnonzero(reference.support).tolist(),
        "kkt_residuals": reference.residuals,
    }


def _steps(progress: Progress, what: str, recipe: Recipe) -> Callable[[int], object]:
    return lambda step: progress(f"{what}, step {step} of {recipe.steps}")


def _series(label: str, path: Trajectory) -> Record:
    """A path's columns; NaN, which is null in the file, where a value does not exist."""
    names = ("log_t", "norm", "log_loss", "angle_gap", "margin_gap", "residual")
    columns = {name: getattr(path, name).tolist() for name in names}
    return {"label": label, **columns, "last_w": path.w[-1].tolist()}


def measure_bias(settings: Bias, progress: Progress = _silent) -> Record:
    """Flow all three protocols, find the soft minimiser, fit the rates.

    Raises:
        InputError: If the set is not separable or a flag is out of its range.
    """
    data = settings.load()
    reference = max_margin(data.signed)
    series, rates, notes = [], {}, []
    for protocol in PROTOCOLS:
        objective = Objective(data, protocol, settings.alpha, diagonal=settings.diagonal)

        def flow(log10_t: float, times: int, objective: Objective = objective) -> Trajectory:
            aim = f"{objective.protocol}: flow to t = 1e{log10_t:g}, at 1e"
            return gradient_flow(
                objective, log10_t, times, progress=lambda now: progress(f"{aim}{now:.1f}")
            )

        path = flow(settings.log10_t, settings.times)
        series.append(_series(protocol, path))
        if settings.rates and protocol != "mixup-soft":
            far = flow(max(settings.log10_t, 100.0), 200)
            try:
                found = late_rates(objective, far)
                if protocol == "mixup-signed":
                    found.append(mixing_rate(objective, flow(300.0, 401)))
                rates[protocol] = [asdict(rate) for rate in found]
            except InputError as reason:
                notes.append(f"{protocol}: {reason}")
    soft = minimise(Objective(data, "mixup-soft", settings.alpha, diagonal=settings.diagonal))
    return _record(
        settings,
        max_margin=_reference(reference),
        series=series,
        rates=rates,
        notes=notes,
        soft_minimiser=_minimiser(soft, reference, data),
    )


def _minimiser(soft: Any, reference: MaxMargin, data: ToyData) -> Record:
    norm, angle, margin = gaps(soft.w, data.signed, reference)
    degrees = float(np.degrees(2.0 * np.arcsin(np.sqrt(angle / 2.0))))
    return {
        "w": soft.w.tolist(),
        "norm": float(norm),
        "loss": soft.loss,
        "gradient_norm": soft.gradient_norm,
        "unique": soft.unique,
        "angle_degrees": degrees if degrees > 1e-12 else 0.0,  # below is rounding
        "signed_angle_degrees": _signed_angle(soft.w, reference.direction),
        "margin_gap": float(margin),
        "quadrature_nodes": soft.nodes,
    }


def _signed_angle(w: np.ndarray, direction: np.ndarray) -> float | None:
    """Degrees from the direction to w, counter-clockwise; None outside the plane."""
    if w.size != 2:
        return None
    across = direction[0] * w[1] - direction[1] * w[0]
    return float(np.degrees(np.arctan2(across, w @ direction)))


def measure_descent(settings: Descent, progress: Progress = _silent) -> Record:
    """The chosen algorithms on one objective.

    Raises:
        InputError: If the set is not separable, or the step is past the stability limit.
    """
    if not settings.algorithms:
        raise InputError("--algorithms needs at least one of gd, sgd, momentum, adam")
    data = settings.load()
    reference = max_margin(data.signed)
    objective = Objective(data, settings.protocol, settings.alpha)
    recipes = [
        Recipe(algorithm, settings.steps, settings.step, settings.sampled, settings.batch)
        for algorithm in settings.algorithms
    ]
    # The tightest limit first, so that the step it suggests will do for all.
    for recipe in sorted(recipes, key=lambda recipe: step_limit(objective, recipe)[0]):
        step_sizes([objective], recipe)
    series = []
    for algorithm, recipe in zip(settings.algorithms, recipes, strict=True):
        paths = descend([objective], recipe, [settings.seed], _steps(progress, algorithm, recipe))
        path = describe(objective, reference, np.log(paths.time[:, 0]), paths.w[:, 0])
        series.append({**_series(algorithm, path), "steps": paths.steps.tolist()})
    return _record(settings, max_margin=_reference(reference), series=series)


def measure_soft(settings: Soft, progress: Progress = _silent) -> Record:
    """The soft minimiser for every α, and at one α for every margin.

    Raises:
        InputError: If the set is not separable or a value is out of its range.
    """
    if not (settings.alphas and settings.margins):
        raise InputError("--alphas and --margins need at least one value each")
    data = settings.load()
    reference = max_margin(data.signed)
    by_alpha, by_margin = [], []
    for alpha in sorted(settings.alphas):
        progress(f"alpha {alpha:g}")
        answer = minimise(Objective(data, "mixup-soft", alpha))
        by_alpha.append({"alpha": alpha, **_minimiser(answer, reference, data)})
    for margin in sorted(settings.margins):
        progress(f"margin {margin:g}")
        moved = data.moved_to(margin, reference.direction, reference.margin)
        answer = minimise(Objective(moved, "mixup-soft", settings.margin_alpha))
        row = _minimiser(answer, max_margin(moved.signed), moved)
        by_margin.append({"margin": margin, **row})
    return _record(
        settings, max_margin=_reference(reference), by_alpha=by_alpha, by_margin=by_margin
    )


def measure_sweep(settings: Sweep, progress: Progress = _silent) -> Record:
    """Seeds × α of descents as one batched computation, ERM beside it.

    Raises:
        InputError: If a set is not separable or a value is out of its range.
    """
    if not settings.alphas:
        raise InputError("--alphas needs at least one value")
    if settings.seeds < 2:
        raise InputError("a standard error needs at least 2 seeds")
    sets = [replace(settings, seed=settings.seed + k).load() for k in range(settings.seeds)]
    references = [max_margin(data.signed) for data in sets]
    protocol: Protocol = "mixup-soft" if settings.soft else "mixup-signed"
    groups: list[tuple[str, float | None, Sequence[Objective]]] = [
        ("erm", None, [Objective(data) for data in sets])
    ]
    mixed = [Objective(data, protocol, alpha) for alpha in settings.alphas for data in sets]
    groups.append((protocol, 0.0, mixed))
    recipe = Recipe(settings.algorithm, settings.steps, sampled=settings.sampled, records=60)
    series = []
    for name, alpha, objectives in groups:
        what = f"{name}, {len(objectives)} runs at once"
        seeds = [settings.seed + k % settings.seeds for k in range(len(objectives))]
        paths = descend(objectives, recipe, seeds, _steps(progress, what, recipe))
        gap = np.stack(
            [
                gaps(paths.w[:, k], objectives[k].data.signed, references[k % settings.seeds])[1:]
                for k in range(len(objectives))
            ]
        ).reshape(-1, settings.seeds, 2, len(paths.steps))
        for row, block in enumerate(gap):
            label = name if alpha is None else f"alpha {settings.alphas[row]:g}"
            mean, spread = block.mean(0), block.std(0, ddof=1) / np.sqrt(settings.seeds)
            series.append(
                {
                    "label": label,
                    "steps": paths.steps.tolist(),
                    "angle_gap": mean[0].tolist(),
                    "angle_gap_sem": spread[0].tolist(),
                    "margin_gap": mean[1].tolist(),
                    "margin_gap_sem": spread[1].tolist(),
                }
            )
    return _record(settings, protocol=protocol, series=series)


def measure_relu(settings: Relu, progress: Progress = _silent) -> Record:
    """Train the homogeneous network by ERM and by soft-label Mixup.

    Raises:
        InputError: If a value is out of its range.
    """
    data = settings.load()
    series = []
    plan: dict[Literal["erm", "mixup-soft"], int] = {
        "erm": settings.steps,
        "mixup-soft": max(1, settings.steps // 4),
    }
    for protocol, steps in plan.items():
        aim = f"ReLU network, {protocol}, step"
        path = train_relu(
            data,
            protocol,
            settings.alpha,
            width=settings.width,
            steps=steps,
            seed=settings.seed,
            progress=lambda now, aim=aim, steps=steps: progress(f"{aim} {now} of {steps}"),  # type: ignore[misc]
        )
        columns = {name: values.tolist() for name, values in vars(path).items()}
        series.append({"label": protocol, **columns})
    return _record(settings, series=series)


def measure_boundary(settings: Boundary, progress: Progress = _silent) -> Record:
    """Train the small network by ERM, Mixup and MixupE; held-out points come from the next seed.

    Raises:
        InputError: If the set is not in the plane or a value is out of its range.
    """
    held_out = replace(settings, seed=settings.seed + 1, points=2000)
    train, test = standardise(settings.load(), held_out.load())
    panels = []
    for training in TRAININGS:
        aim = f"boundary of {training}, step"
        seen = train_boundary(
            train,
            test,
            training,
            alpha=settings.alpha,
            eta=settings.eta,
            steps=settings.steps,
            side=settings.side,
            seed=settings.seed,
            progress=lambda now, aim=aim: progress(f"{aim} {now} of {settings.steps}"),  # type: ignore[misc]
        )
        numbers = {k: v for k, v in vars(seen).items() if isinstance(v, float)}
        grid = np.round(seen.probability, 6).tolist()
        panels.append(
            {"label": training, "axis": seen.axis.tolist(), "probability": grid, **numbers}
        )
    return _record(settings, x=train.x.tolist(), y=train.y.tolist(), panels=panels)


def measure_separable(settings: Separable, progress: Progress = _silent) -> Record:
    """The verdict of the linear program, with its proof, and the max margin if there is one."""
    data = settings.load()
    progress("linear program")
    verdict = separability(data.signed)
    proof: Record = {
        "separable": verdict.separable,
        "direction": verdict.direction.tolist(),
        "weights": verdict.weights.tolist(),
        "residual": verdict.residual,
    }
    if verdict.separable:
        proof["max_margin"] = _reference(max_margin(data.signed))
    return _record(settings, **proof)
