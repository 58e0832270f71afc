"""What is measured while a run trains, and where it is written."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deep.evaluate import evaluate
from deep.loop import Step, Training
from deep.recipes import Recipe
from deep.run_folder import CHECKS, LOG, Log
from theory.probe import measure_probe


class Watch:
    """What is measured while a run trains, and the logs that it goes to.

    Args:
        folder: The run's.
        recipe: Its settings.
        model: The network that trains.
        training: How far it is.
        parts: Name -> (inputs, labels) on which each epoch's loss and error are measured.
        probe: (inputs, targets) on which q̂ is held against q, on the network's device.
        mean: x̄' = E[x'].
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        model: nn.Module,
        training: Training,
        parts: dict[str, tuple[Tensor, Tensor]],
        probe: tuple[Tensor, Tensor],
        mean: Tensor,
    ) -> None:
        self._folder, self._recipe = folder, recipe
        self._model, self._training, self._mean = model, training, mean
        self._parts, self._probe = parts, probe
        self._log, self._checks = Log(folder / LOG), Log(folder / CHECKS)
        self._sums = {"loss": 0.0, "accuracy": 0.0, "steps": 0}
        self._sizes = (0, 0)
        self._before, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the run has taken in all its pieces; what a kill made vain is left out."""
        return self._before + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must know: the begun epoch's sums, the logs' lengths, the time."""
        sizes = [self._log.size, self._checks.size]
        return {"sums": dict(self._sums), "sizes": sizes, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._sums, self._sizes = state["sums"], state["sizes"]
        self._before = state["seconds"]

    def open(self) -> None:
        """Cuts the logs back to what the checkpoint knew, so that nothing stands there twice."""
        for log, size in zip((self._log, self._checks), self._sizes, strict=True):
            log.cut(size)

    def add(self, step: Step) -> None:
        """Counts a step into its epoch's means."""
        self._sums["loss"] += step.loss
        self._sums["accuracy"] += step.accuracy
        self._sums["steps"] += 1

    def restart(self) -> None:
        """Begins an epoch."""
        self._sums = {"loss": 0.0, "accuracy": 0.0, "steps": 0}

    def check(self, lr: float) -> None:
        """Measures q̂ against q on the probe."""
        training, recipe = self._training, self._recipe
        found = measure_probe(
            self._model, *self._probe, self._mean, head=recipe.head,
            gradients=recipe.check_gradients, seed=recipe.seed,
        )  # fmt: skip
        where = {"epoch": round(training.epoch, 6), "step": training.index, "lr": lr}
        self._checks.append({**where, **found})

    def seconds_aside(self, step: Step) -> float:
        """Seconds an epoch that logging and checking take, measured; what they wrote is dropped."""
        self._folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        self.log(step)
        logged = time.monotonic()
        every = self._recipe.check_every
        if every > 0:
            self.check(step.lr)
        checked = (time.monotonic() - logged) / every if every > 0 else 0.0
        for log in (self._log, self._checks):
            log.cut(0)
        return logged - start + checked

    def log(self, step: Step) -> dict[str, Any]:
        """Evaluates the network on clean data; the log's new line."""
        line: dict[str, Any] = {
            "epoch": round(step.epoch, 6),
            "step": step.index + 1,
            "lr": step.lr,
            "loss": self._sums["loss"] / self._sums["steps"],
            "mixed_accuracy": self._sums["accuracy"] / self._sums["steps"],
        }
        head = self._recipe.head
        for name, (x, labels) in self._parts.items():
            found = evaluate(self._model, x, labels, head=head) if len(labels) else None
            line[f"{name}_loss"] = None if found is None else found.loss
            line[f"{name}_error"] = None if found is None else found.error
        self._log.append(line)
        return line
