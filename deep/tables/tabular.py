"""Table 4 of the talk: test errors of perceptrons on 15 tables, by training objective.

The talk gives errors over five trials and no protocol, and no code of it is public. Ours is an
assumption, stated here in full and recorded with every result:

* A table is split 60/20/20 into training, validation and test rows, classes in proportion, as often
  as there are seeds; all methods get the same splits, initial weights, batches, partners and
  quantiles of λ. Inputs are prepared by the training rows' statistics (`deep.data.tabular`).
* The network is an MLP of two hidden layers with ReLU, trained by SGD with Nesterov momentum, a
  twentieth of the steps warming up, then a cosine to zero. The last state is the one measured.
* α of mixup, α and η of MixupE are chosen for each seed and method on the validation rows: least
  error, among equals least loss, among equals the first (α, then η, from the smallest). ERM has
  nothing to choose. The test error is that of the chosen run; test rows have no part in a choice.
* Learning rate (of 0.01, 0.03, 0.1), weight decay (of 1e-4, 1e-3) and length (of 20 to 40 epochs,
  or 2,000 steps if more) were fixed by ERM's validation errors on three to eight splits of six
  tables, one setting for all, before any other method was run. Width, batch size and the grids of α
  and η were not tuned.
* MNIST and Volkert, with more than 50,000 rows, get fewer seeds and epochs.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch

from deep.data.tabular import TABLES, Table, load_table, prepare, split, table_size
from deep.loop import Optimization
from deep.stacked import METHODS, TAU, Method, Part, Run, outcomes, steps_an_epoch, trained
from deep.tables.jobs import Job, Progress, TableConfig
from theory.errors import InputError, unknown
from theory.mixing import beta_law

_BOTH = ("alpha", "eta")
_TUNED: dict[Method, tuple[str, ...]] = {"erm": (), "mixup": ("alpha",)}  # the others: both
_RECORDED = ("methods", "alphas", "etas", "lr", "momentum", "weight_decay", "batch_size")
_LARGE = 50_000  # rows
_TIMED_SEEDS, _TIMED_STEPS = 4, (2, 32)


@dataclass(frozen=True, kw_only=True)
class TabularConfig(TableConfig):
    """Table 4: perceptrons on tables, hyper-parameters chosen on a validation part."""

    number: ClassVar[int] = 4
    methods: tuple[Method, ...] = METHODS
    """Training objectives"""
    seeds: int = 20
    """Splits, each with its own initial weights and draws"""
    alphas: tuple[float, ...] = (0.2, 1.0, 2.0)
    """Beta's α to choose from"""
    etas: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Strengths of MixupE's penalty to choose from"""
    width: int = 128
    """Units of each of the two hidden layers"""
    batch_size: int = 32
    """Examples in a step"""
    epochs: float = 30.0
    """Passes over the training rows"""
    least_steps: int = 500
    """Steps that a small table is trained for at least"""
    lr: float = 0.03
    """Peak learning rate"""
    momentum: float = 0.9
    """Nesterov momentum"""
    weight_decay: float = 1e-4
    """L2 penalty coefficient"""
    large_seeds: int = 5
    """Splits of tables with over 50,000 rows"""
    large_epochs: float = 10.0
    """Passes over the training rows of those"""

    def jobs(self) -> list[Job]:
        """One a table: all seeds, methods and hyper-parameters.

        Raises:
            InputError: If a flag is out of range or a row unknown.
        """
        for row in self.rows:
            if row not in TABLES:
                raise unknown("row", row, TABLES)
        for name in ("methods", "seeds", "alphas", "etas", "width", "large_seeds"):
            value = getattr(self, name)
            if not value or (isinstance(value, int) and value < 1):
                raise InputError(f"{name} is {value}: ask for at least one")
        for alpha in self.alphas:
            beta_law(alpha)
        for eta in self.etas:
            if not 0 <= eta < math.inf:
                raise InputError(f"eta is {eta}: it must be zero or a positive finite number")
        jobs = [TabularJob(row, self) for row in dict.fromkeys(self.rows) or TABLES]
        for job in jobs:
            job.optimization.check()
        return list(jobs)

    def grid(self, seed: int) -> list[Run]:
        """A seed's runs of all methods, each method's in the order in which equals are chosen."""
        values = {"alpha": sorted(self.alphas), "eta": sorted(self.etas)}
        return [
            Run(seed, method, **dict(zip(names, choice, strict=True)))
            for method in dict.fromkeys(self.methods)
            for names in [_TUNED.get(method, _BOTH)]
            for choice in product(*(values[name] for name in names))
        ]


class Outcome(NamedTuple):
    """What a run came to: shares of misclassified examples, and the mean loss in nats."""

    run: Run
    validation_error: float
    validation_loss: float
    error: float


class TabularJob(Job):
    """All of one table.

    Args:
        row: The table.
        config: The protocol.

    Attributes:
        seeds: What it is repeated for.
        optimization: How each run is trained.
    """

    def __init__(self, row: str, config: TabularConfig):
        self.name = self.row = row
        self.config = config
        rows = table_size(row)[0]
        large = rows > _LARGE
        self.seeds = range(config.large_seeds if large else config.seeds)
        self.seeds_at_once = 1 if large else len(self.seeds)  # whose inputs are held in memory
        self.runs = sum(len(config.grid(seed)) for seed in self.seeds)
        self.steps = steps_an_epoch(rows - 2 * round(rows / 5), config.batch_size)
        epochs = config.large_epochs if large else config.epochs
        self.optimization = Optimization(
            epochs=max(epochs, config.least_steps / self.steps),
            batch_size=config.batch_size,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.settings = self._settings()

    def seconds(self) -> float:
        """From a few steps on a few of the splits."""
        table = load_table(self.row, self.config.data_dir)
        seeds = self.seeds[: min(_TIMED_SEEDS, self.seeds_at_once)]
        start = time.perf_counter()
        train, _, _ = _prepared(table, seeds)
        preparing = time.perf_counter() - start
        runs = [run for seed in seeds for run in self.config.grid(seed)]

        def training(steps: int) -> float:
            few = replace(self.optimization, epochs=steps / self.steps)
            start = time.perf_counter()
            for _ in trained(runs, train, len(table.classes), few, width=self.config.width):
                pass
            return time.perf_counter() - start

        training(1)  # loads what the first call of all loads
        less, more = map(training, _TIMED_STEPS)
        a_step = max(0.0, more - less) / (_TIMED_STEPS[1] - _TIMED_STEPS[0])
        steps = math.ceil(self.optimization.epochs * self.steps)
        return (preparing + less + a_step * steps) * len(self.seeds) / len(seeds)

    def source(self) -> str:
        """See `Job.source`."""
        return load_table(self.row, self.config.data_dir).source

    def run(self, progress: Progress) -> dict[str, Any]:
        """Trains all and chooses; see `Job.run`."""
        table = load_table(self.row, self.config.data_dir)
        results: list[dict[str, Any]] = []
        done, whole = 0, self.runs * math.ceil(self.optimization.epochs)

        def advance(runs: int) -> None:
            nonlocal done
            done += runs
            progress(done / whole)

        for start in range(0, len(self.seeds), self.seeds_at_once):
            seeds = self.seeds[start : start + self.seeds_at_once]
            parts = _prepared(table, seeds)
            found = self._outcomes(parts, len(table.classes), advance)
            for seed in seeds:
                results += _chosen(self.row, [found[run] for run in self.config.grid(seed)])
        sizes = zip(("train", "validation", "test"), parts, strict=True)
        return {
            "data": {
                "source": table.source,
                **{name: len(part[seeds[0]].x) for name, part in sizes},
                "inputs": parts[0][seeds[0]].x.shape[1],
                "classes": len(table.classes),
            },
            "results": results,
        }

    def _outcomes(
        self, parts: tuple[dict[int, Part], ...], num_classes: int, advance: Callable[[int], None]
    ) -> dict[Run, Outcome]:
        """Of all runs of the seeds whose training, validation and test parts are given."""
        train, validation, test = parts
        runs = [run for seed in train for run in self.config.grid(seed)]
        width = self.config.width
        found = {}
        for chosen, stack in trained(
            runs, train, num_classes, self.optimization, width=width, progress=advance
        ):
            loss, validation_error = outcomes(stack, chosen, validation)
            _, error = outcomes(stack, chosen, test)
            numbers = [values.tolist() for values in (validation_error, loss, error)]
            found.update({run: Outcome(run, *n) for run, *n in zip(chosen, *numbers, strict=True)})
        return found

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "inputs": "standardised by the training rows, cut off at 10 deviations; one-hot",
            "network": f"MLP, {config.width} and {config.width} hidden units",
            "optimizer": "SGD with Nesterov momentum, linear warm-up over a twentieth, cosine",
            "split": "60/20/20, classes in proportion",
            "choice": "least validation error, then loss, then the first",
            **{name: getattr(config, name) for name in _RECORDED},
            "tau": TAU,
            "epochs": self.optimization.epochs,
            "seeds": list(self.seeds),
        }


def _prepared(table: Table, seeds: Iterable[int]) -> tuple[dict[int, Part], ...]:
    """Training, validation and test part of each seed."""
    labels = torch.from_numpy(table.labels)
    parts: tuple[dict[int, Part], ...] = ({}, {}, {})
    for seed in seeds:
        rows = split(table.labels, seed)
        inputs = prepare(table, rows.train)
        for part, chosen in zip(parts, rows, strict=True):
            part[seed] = Part(inputs[chosen], labels[chosen])
    return parts


def _chosen(row: str, grid: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The entry of each method: its best run by the validation part, of all runs of one seed.

    Raises:
        InputError: If all runs of a method diverged.
    """
    by_method: dict[Method, list[Outcome]] = {}
    for outcome in grid:
        by_method.setdefault(outcome.run.method, []).append(outcome)
    return [_best(row, candidates) for candidates in by_method.values()]


def _best(row: str, candidates: Sequence[Outcome]) -> dict[str, Any]:
    run = candidates[0].run
    finite = [outcome for outcome in candidates if math.isfinite(outcome.validation_loss)]
    if not finite:
        raise InputError(
            f"all {len(candidates)} runs of {run.method} on {row}, split {run.seed}, diverged: "
            "lower --lr"
        )
    best = min(finite, key=lambda outcome: (outcome.validation_error, outcome.validation_loss))
    return {
        "method": run.method,
        "split": run.seed,
        "error": best.error,
        "validation_error": best.validation_error,
        "chosen": {name: getattr(best.run, name) for name in _TUNED.get(run.method, _BOTH)},
        "diverged": len(candidates) - len(finite),
    }
