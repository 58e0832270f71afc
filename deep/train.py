"""The training loop, flat and read from top to bottom.

SGD with Nesterov momentum, a short linear warm-up and a cosine to zero.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError


@dataclass(frozen=True)
class Step:
    """What one optimiser step did.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the whole run.
        epoch: Passes over the data completed after this step, a fraction in between.
        loss: The objective's value on the step's batch, before the step, in nats.
        lr: Learning rate of the step.
    """

    index: int
    total: int
    epoch: float
    loss: float
    lr: float


def learning_rate(index: int, total: int, peak: float) -> float:
    """Learning rate of step `index` of `total`: linear warm-up, then a cosine to zero.

    The warm-up takes the first twentieth of the steps, rounded up, and rises from a fraction of the
    peak to the peak; half a cosine then falls from the peak to zero, reached as the run ends.
    """
    warmup = math.ceil(total / 20)
    if index < warmup:
        return peak * (index + 1) / warmup
    return peak * (1 + math.cos(math.pi * (index - warmup) / (total - warmup))) / 2


def train(
    objective: nn.Module,
    x: Float[Tensor, "samples *dims"],
    targets: Float[Tensor, "samples classes"],
    *,
    epochs: float,
    batch_size: int = 32,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    generator: torch.Generator,
) -> Iterator[Step]:
    """Trains the objective's model in place, yielding after every optimiser step.

    Between steps the caller may draw a progress bar, measure the model, switch it between train and
    eval mode, or stop iterating; the objective is put in train mode for every step. Nothing
    happens, and no argument is checked, before the first `next`.

    The data lies on the model's device throughout and is reshuffled each epoch. A last batch of one
    example, which batch norm could not normalise and Mixup could not mix, joins the batch before
    it, so every example is seen once an epoch. Equal seeds of all generators give bit-identical
    runs on the same machine with the same number of threads. Weight decay acts on every parameter.

    Args:
        objective: Maps (inputs, targets) of a batch to a scalar loss; see `deep.objective`.
        x: All inputs.
        targets: One row an example, as from `theory.losses.as_targets`.
        epochs: Passes over the data; fractions are rounded up to whole steps, 0 takes no step.
        batch_size: Examples a step, at least 2.
        lr: Peak learning rate, see `learning_rate`.
        momentum: Nesterov momentum.
        weight_decay: L2 penalty coefficient of SGD.
        generator: A CPU generator for the order of the examples.

    Yields:
        One `Step` for each optimiser step.

    Raises:
        InputError: If there are fewer than two examples, a number is out of range, x or targets
            hold NaN or infinity, or the loss becomes NaN or infinite; the message names the step.
    """
    _check_data(x, targets, batch_size)
    _check_numbers(epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
    device = next(objective.parameters()).device
    x, targets = x.to(device), targets.to(device)
    optimizer = torch.optim.SGD(
        objective.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )
    steps_per_epoch = (len(x) - 2) // batch_size + 1
    total = math.ceil(epochs * steps_per_epoch)
    for index in range(total):
        position = index % steps_per_epoch
        if position == 0:
            order = torch.randperm(len(x), generator=generator).to(device)
        end = None if position == steps_per_epoch - 1 else (position + 1) * batch_size
        chosen = order[position * batch_size : end]

        objective.train()
        loss = objective(x[chosen], targets[chosen])
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(
                f"the loss is {value} at step {index + 1} of {total}: lower the learning rate "
                f"(it peaks at {lr})"
            )
        optimizer.param_groups[0]["lr"] = learning_rate(index, total, lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield Step(
            index, total, (index + 1) / steps_per_epoch, value, optimizer.param_groups[0]["lr"]
        )


def _check_data(x: Tensor, targets: Tensor, batch_size: int) -> None:
    if len(x) != len(targets):
        raise InputError(f"{len(x)} inputs but {len(targets)} targets: pass one row an example")
    if len(x) < 2 or batch_size < 2:
        raise InputError(
            f"{len(x)} examples in batches of {batch_size}: training needs at least two of both"
        )
    if not bool(x.isfinite().all() and targets.isfinite().all()):
        raise InputError("the training data hold NaN or infinity: clean them first")


def _check_numbers(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise InputError(f"{name} is {number}: it must be zero or a positive finite number")
