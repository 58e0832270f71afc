"""The training loop: optimiser steps that can be stopped after any one and taken up again exactly.

`Training` iterates; whoever iterates may measure, log and save between two steps. The command
`python -m deep.train` and the check of `theory.check_approx` are two such users.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deep.data.graph_batches import Graphs
from deep.processes import mean_over_processes, rank, world_size
from theory.errors import InputError

# (inputs of a batch, the examples' numbers, epoch) -> inputs to train on
Augment = Callable[[Any, Tensor, int], Any]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the loss is minimised: steps, optimiser and learning rate."""

    epochs: float = 1.0
    """Passes over the training data, fractions allowed; 0 trains nothing"""
    batch_size: int = 32
    """Examples in an optimiser step, over all processes"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW"""
    lr: float = 0.1
    """Peak learning rate"""
    momentum: float = 0.9
    """Nesterov momentum of SGD; AdamW keeps its own betas"""
    weight_decay: float = 1e-4
    """SGD: L2 penalty coefficient; AdamW: decoupled decay. Acts on every parameter"""
    schedule: Literal["cosine", "steps"] = "cosine"
    """After the warm-up: half a cosine to zero, or a factor at each milestone"""
    warmup_epochs: float | None = None
    """Length of the linear warm-up; a twentieth of the run if not given"""
    warmup_lr: float = 0.0
    """Learning rate that the warm-up rises from"""
    milestones: tuple[float, ...] = ()
    """Epochs after which `steps` lowers the learning rate"""
    decay: float = 0.1
    """Factor of `steps` at each milestone"""

    def learning_rate(self, index: int, steps_per_epoch: int) -> float:
        """Learning rate of step `index`, counted from 0.

        The warm-up takes its epochs' steps, rounded up, and ends at the peak; its first step is one
        part above `warmup_lr`. The cosine falls from the peak to zero, reached as the run ends.
        """
        total = math.ceil(self.epochs * steps_per_epoch)
        if self.warmup_epochs is None:
            warmup = math.ceil(total / 20)
        else:
            warmup = math.ceil(self.warmup_epochs * steps_per_epoch)
        if index < warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * (index + 1) / warmup
        if self.schedule == "steps":
            passed = sum(index >= round(epoch * steps_per_epoch) for epoch in self.milestones)
            return self.lr * self.decay**passed
        return self.lr * (1 + math.cos(math.pi * (index - warmup) / (total - warmup))) / 2

    def check(self) -> None:
        """Raises InputError if a number is out of range."""
        numbers = ("epochs", "lr", "momentum", "weight_decay", "warmup_lr", "decay")
        for name in (*numbers, *(() if self.warmup_epochs is None else ("warmup_epochs",))):
            number = getattr(self, name)
            if not 0 <= number < math.inf:
                raise InputError(f"{name} is {number}: it must be zero or a positive finite number")
        if self.batch_size < 2:
            raise InputError(f"batch_size is {self.batch_size}: training needs at least 2 examples")
        if sorted(self.milestones) != list(self.milestones) or min(self.milestones, default=1) <= 0:
            raise InputError(f"milestones are {self.milestones}: they must be positive and rising")


@dataclass(frozen=True)
class Step:
    """What one optimiser step did.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the whole run.
        epoch: Passes over the data completed after this step, a fraction in between.
        loss: The objective's value on the step's batch, before the step, in nats.
        accuracy: Of the model on that batch as the objective saw it: a mixed example counts by the
            weight of the label that was predicted. NaN where the objective does not tell.
        lr: Learning rate of the step.
        stopping: Whether a process was asked to stop (`Training.stop`).
    """

    index: int
    total: int
    epoch: float
    loss: float
    accuracy: float
    lr: float
    stopping: bool = False


class Training:
    """Minimises an objective over a data set; iterate for one `Step` after another.

    Between steps the caller may measure the model, switch it between train and eval mode, save
    `state_dict()`, or stop iterating; the objective is put in train mode for every step. Iteration
    goes on from the step that was reached.

    The data lies on the model's device throughout and is reshuffled each epoch. A last batch of one
    example, which batch norm could not normalise and Mixup could not mix, joins the batch before
    it, so every example is seen once an epoch. Equal seeds of all generators give bit-identical
    runs on the same machine with the same number of threads, interrupted or not.

    Under `torch.distributed` every process holds all data and the same seeds, and takes an equal
    share of each batch; up to `world_size() − 1` examples an epoch, those that cannot be shared
    equally, are left out. Batch norm then normalises by each process's share unless
    `deep.batch_norm.synchronize_batch_norm` was applied to the model.

    Args:
        objective: Maps (inputs, targets) of a batch to a scalar loss; see `deep.objective`.
        x: All inputs: anything that gives a batch by the numbers of its examples.
        targets: One row an example, as from `theory.losses.as_targets`.
        settings: Steps, optimiser and learning rate.
        generator: A CPU generator for the order of the examples.
        augment: Called with a batch, its examples' numbers and the epoch.
        autocast: Whether forward passes run in bfloat16 where PyTorch deems that safe.

    Raises:
        InputError: If there are fewer than two examples a process, a number is out of range, x or
            targets hold NaN or infinity, or no parameter requires a gradient; on iteration, if the
            loss becomes NaN or infinite.
    """

    def __init__(
        self,
        objective: nn.Module,
        x: Float[Tensor, "samples *dims"] | Graphs,
        targets: Float[Tensor, "samples classes"],
        settings: Optimization,
        *,
        generator: torch.Generator,
        augment: Augment | None = None,
        autocast: bool = False,
    ) -> None:
        settings.check()
        _check_data(x, targets, settings.batch_size)
        if not any(p.requires_grad for p in objective.parameters()):
            raise InputError(
                "no parameter of the network requires a gradient: unfreeze one, or check "
                "it as it is by python -m theory.check_approx --epochs 0"
            )
        self.objective, self.settings = objective, settings
        self.device = next(objective.parameters()).device
        self.x, self._targets = x.to(self.device), targets.to(self.device)
        self._generator, self._augment, self._autocast = generator, augment, autocast
        self._parallel = objective
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(objective, device_ids=ids)
        self.optimizer = _optimizer(objective, settings)
        self.steps_per_epoch = (len(x) - 2 * world_size()) // settings.batch_size + 1
        self.total = math.ceil(settings.epochs * self.steps_per_epoch)
        self.index = 0
        self.stop = False
        self._epoch_state = generator.get_state()
        self._order: Int[Tensor, " samples"] | None = None

    def __iter__(self) -> Iterator[Step]:
        while self.index < self.total:
            yield self._step()

    @property
    def epoch(self) -> float:
        """Passes over the data completed."""
        return self.index / self.steps_per_epoch

    def _step(self) -> Step:
        chosen = self._batch()
        x = self.x[chosen]
        if self._augment is not None:
            x = self._augment(x, chosen, self.index // self.steps_per_epoch)

        self.objective.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            loss = self._parallel(x, self._targets[chosen])
        told = (loss.detach(), getattr(self.objective, "accuracy", math.nan), float(self.stop))
        numbers = [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in told]
        value, accuracy, stopping = mean_over_processes(torch.stack(numbers)).tolist()
        if not math.isfinite(value):
            raise InputError(
                f"the loss is {value} at step {self.index + 1} of {self.total}: lower the learning "
                f"rate (it peaks at {self.settings.lr})"
            )
        lr = self.settings.learning_rate(self.index, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.index += 1
        return Step(self.index - 1, self.total, self.epoch, value, accuracy, lr, stopping > 0)

    def _batch(self) -> Int[Tensor, " batch"]:
        """This process's examples of the step that is due."""
        position = self.index % self.steps_per_epoch
        if self._order is None or position == 0:
            if position == 0:
                self._epoch_state = self._generator.get_state()
            self._order = torch.randperm(len(self.x), generator=self._generator).to(self.device)
        size = self.settings.batch_size
        end = None if position == self.steps_per_epoch - 1 else (position + 1) * size
        chosen = self._order[position * size : end]
        share = len(chosen) // world_size()
        return chosen[rank() * share : (rank() + 1) * share]

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on, but the model's own state.

        Of tensors, numbers and strings, so that `torch.load(…, weights_only=True)` reads it.
        """
        objective_generator = getattr(self.objective, "generator", None)
        return {
            "index": self.index,
            "optimizer": self.optimizer.state_dict()["state"],
            # The order of a begun epoch is drawn again from the state that it was drawn from.
            "order": self._generator.get_state() if self._at_epoch() else self._epoch_state,
            "objective": None if objective_generator is None else objective_generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave; the model's state is the caller's to load."""
        self.index = state["index"]
        groups = self.optimizer.state_dict()["param_groups"]  # of the settings, not of the state
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self._generator.set_state(state["order"])
        self._epoch_state, self._order = state["order"], None
        if state["objective"] is not None:
            self.objective.generator.set_state(state["objective"])  # type: ignore[union-attr,operator]
        torch.set_rng_state(state["torch"])
        if state["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda"])

    def _at_epoch(self) -> bool:
        return self.index % self.steps_per_epoch == 0


def _optimizer(objective: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            objective.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        objective.parameters(),
        settings.lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _check_data(x: Tensor | Graphs, targets: Tensor, batch_size: int) -> None:
    if len(x) != len(targets):
        raise InputError(f"{len(x)} inputs but {len(targets)} targets: pass one row an example")
    least = 2 * world_size()
    if len(x) < least or batch_size < least:
        raise InputError(
            f"{len(x)} examples in batches of {batch_size}: training needs at least two of both"
            + (f" for each of the {world_size()} processes" if world_size() > 1 else "")
        )
    if batch_size % world_size():
        raise InputError(
            f"batch_size is {batch_size}, which {world_size()} processes cannot share equally: "
            "choose a multiple"
        )
    if not bool(x.isfinite().all() and targets.isfinite().all()):
        raise InputError("the training data hold NaN or infinity: clean them first")
