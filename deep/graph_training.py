"""Training of many GINs on one set of graphs, by the schedule of Xu et al. (2019).

An epoch is a number of steps, each on a batch drawn anew without replacement from the network's own
training graphs; Adam, whose learning rate is halved every 50 epochs (published code of "How
powerful are graph neural networks?", ICLR 2019).

Mixup and MixupE act on graph embeddings, as `deep.objective.OnEmbedding` says. What a network draws
depends on its seed alone: initial weights, batches, λ, partners and what dropout leaves are the
same for all methods and whatever trains beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from deep.data.graph_batches import Graphs
from deep.mixupe import eta_hat
from deep.models.gin import DROPOUT, GIN
from deep.models.gin_stack import GINStack, Neighbourhoods
from deep.stacked import TAU, Method, by_run
from theory.errors import InputError
from theory.first_order import q_hat
from theory.losses import as_targets, loss
from theory.mixing import beta_law, relabelled_law

# Tells of each network which of its graphs it misclassifies, in evaluation mode, as it is then.
Evaluation = Callable[[], list[Tensor]]
_HALVED_EVERY = 50  # epochs


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a GIN is trained; the defaults are those of the published code."""

    method: Method
    """Objective, of `deep.objective`"""
    alpha: float
    """Beta's α = β; erm ignores it"""
    eta: float
    """Strength of MixupE's penalty; erm and mixup ignore it"""
    steps: int = 50
    """Optimiser steps in an epoch"""
    batch_size: int = 32
    """Graphs in a step, or as many as there are"""
    lr: float = 0.01
    """Adam's learning rate in the first 50 epochs"""
    width: int = 64
    """Hidden units"""

    def check(self) -> None:
        """Raises InputError if a number is out of range."""
        beta_law(self.alpha)
        if not 0 <= self.eta < math.inf:
            raise InputError(f"eta is {self.eta}: it must be zero or a positive finite number")
        for name in ("steps", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")


class Draws(NamedTuple):
    """What is random in a step.

    Attributes:
        lam: λ of each network.
        partner: Whom each of a network's graphs is mixed with.
        kept: Which scores dropout keeps: in the first pass of the head, on mixed embeddings or
            erm's on clean ones, and in the second, on clean ones.
    """

    lam: Float[Tensor, "networks 1 1"]
    partner: Int64[Tensor, "networks graphs"]
    kept: Bool[Tensor, "passes parts networks graphs classes"]


class GraphTraining:
    """GINs in training, each on some of the graphs.

    Args:
        graphs: The whole set.
        labels: Their classes, from 0.
        train: Numbers of the graphs that each network is trained on.
        seeds: Of each network.
        schedule: The same for all, checked.

    Attributes:
        stack: The networks.
        epochs: How many they were trained for.
    """

    def __init__(
        self,
        graphs: Graphs,
        labels: Int64[Tensor, " graphs"],
        train: Sequence[Int64[Tensor, " _"]],
        seeds: Sequence[int],
        schedule: Schedule,
    ):
        self.schedule, self.epochs = schedule, 0
        self._train, self._labels = train, labels
        self._law = beta_law(schedule.alpha)
        self._strength = schedule.eta * relabelled_law(schedule.alpha).moment(1)
        self._size = min(schedule.batch_size, *map(len, train))
        self._classes = int(labels.max()) + 1
        self._targets = as_targets(labels, self._classes, dtype=graphs.dtype)
        networks = [initial(graphs, self._classes, schedule.width, seed) for seed in seeds]
        self.stack = GINStack(networks)
        self._neighbourhoods = Neighbourhoods(graphs)
        # Two of each network, so that what a method draws does not change its batches.
        self._order, self._noise = (
            [torch.Generator().manual_seed(2 * seed + k) for seed in seeds] for k in (0, 1)
        )
        self._optimizer = torch.optim.Adam(self.stack.parameters, schedule.lr, fused=True)

    def epoch(self) -> None:
        """Trains for an epoch.

        Raises:
            InputError: If a loss becomes NaN or infinite.
        """
        self._optimizer.param_groups[0]["lr"] = self.schedule.lr * 0.5 ** (
            self.epochs // _HALVED_EVERY
        )
        for _ in range(self.schedule.steps):
            values = self.step(self.draw_batch(), self.draw())
        if not bool(values.isfinite().all()):
            raise InputError(
                f"{self.schedule.method} diverged in epoch {self.epochs + 1}: lower the learning "
                f"rate, {self.schedule.lr}"
            )
        self.epochs += 1

    def draw_batch(self) -> list[Int64[Tensor, " batch"]]:
        """Numbers of the graphs of a step, for each network."""
        return [
            own[torch.randperm(len(own), generator=generator)[: self._size]]
            for own, generator in zip(self._train, self._order, strict=True)
        ]

    def draw(self) -> Draws:
        """What else is random in it."""
        shape = (2, len(self.stack.widths), self._size, self._classes)
        lam, partner, kept = zip(*(
            (
                self._law.sample(1, generator),
                torch.randperm(self._size, generator=generator),
                torch.rand(shape, generator=generator) >= DROPOUT,
            )
            for generator in self._noise
        ), strict=True)  # fmt: skip
        lams = torch.stack(lam)[:, None].to(self._targets.dtype)
        return Draws(lams, torch.stack(partner), torch.stack(kept, 2))

    def step(
        self, chosen: Sequence[Int64[Tensor, " _"]], draws: Draws
    ) -> Float[Tensor, " networks"]:
        """One optimiser step; returns the objectives' values before it, in nats."""
        batch = self._neighbourhoods.batch(chosen)
        z = self.stack.embed(batch, training=True).requires_grad_()
        for parameter in self.stack.readout_parameters:
            parameter.grad = None
        values = self._values(z, self._targets[torch.stack(list(chosen))], draws)
        values.sum().backward()
        assert z.grad is not None
        self.stack.backward(batch, z.grad)
        self._optimizer.step()
        return values.detach()

    def _values(
        self,
        z: Float[Tensor, "networks graphs dim"],
        targets: Float[Tensor, "networks graphs classes"],
        draws: Draws,
    ) -> Float[Tensor, " networks"]:
        """What `deep.objective.OnEmbedding` gives, for each network."""
        kept = draws.kept.to(z.dtype) / (1 - DROPOUT)
        method = self.schedule.method
        if method == "erm":
            return by_run(loss, self._logits(z, kept[0]), targets).mean(1)
        network = torch.arange(len(z))[:, None]
        mixed, mixed_targets = (
            draws.lam * rows + (1 - draws.lam) * rows[network, draws.partner]
            for rows in (z, targets)
        )
        risk = by_run(loss, self._logits(mixed, kept[0]), mixed_targets).mean(1)
        if method == "mixup":
            return risk
        logits = self._logits(z, kept[1])
        if method == "mixupe-exact":
            direction = z.mean(1, keepdim=True).detach() - z
            tangents = (self.stack.scores(direction, bias=False) * kept[1]).sum(0)
            penalty = ((logits.softmax(-1) - targets) * tangents).sum(-1).abs()
        elif method == "mixupe-paper":
            penalty = by_run(q_hat, logits, targets).abs()
        else:
            estimate = by_run(q_hat, logits, targets)
            penalty = -torch.where(estimate >= TAU, 0.0, estimate)  # a NaN stays
        total = risk + self._strength * penalty.mean(1)
        return eta_hat(risk, total) * total

    def _logits(self, z: Tensor, kept: Tensor) -> Float[Tensor, "networks graphs classes"]:
        return (self.stack.scores(z) * kept).sum(0)

    def evaluation(self, numbers: Sequence[Int64[Tensor, " _"]]) -> Evaluation:
        """Prepares the evaluation of each network on some graphs, at any time in training.

        Args:
            numbers: Of the graphs, for each network.
        """
        batch = self._neighbourhoods.batch(numbers)

        def wrong() -> list[Bool[Tensor, " _"]]:
            with torch.no_grad():
                z = self.stack.embed(batch, training=False)
                predicted = self.stack.scores(z).sum(0).argmax(-1)
            return [
                of_network[: len(own)] != self._labels[own]
                for of_network, own in zip(predicted, numbers, strict=True)
            ]

        return wrong


def initial(graphs: Graphs, num_classes: int, width: int, seed: int) -> GIN:
    """A GIN for these graphs as the seed makes it, without touching PyTorch's own generator."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = GIN(num_classes=num_classes, in_channels=graphs.shape[1], width=width)
    return network.to(graphs.dtype)
