"""Many small perceptrons trained at once: their weights lie in one tensor, their layers are `bmm`.

A network of the size that a table asks for is too small to keep a processor busy, and a Python loop
over many spends most of its time between operations. Here a layer of all networks is one batched
matrix product, and one fused optimiser step moves them all. Networks differ in seed, objective and
hyper-parameters, and each computes what `deep.models.mlp.MLP` trained alone by the objective of
that name in `deep.objective` and by `torch.optim.SGD` would.

What a run draws (its initial weights, the order of the examples, λ and the partners) depends on
nothing but its seed and, λ, on α. So runs of one seed see the same batches, mixed by the same
permutation and the same quantile of Beta(α, α), whatever their objective, and no run depends on
which others train beside it. A run that diverges ends in NaN and leaves the others as they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deep.loop import Optimization
from deep.mixupe import eta_hat
from deep.models.mlp import MLP
from deep.models.mlp_stack import MLPStack
from theory.errors import InputError
from theory.first_order import q_hat
from theory.losses import as_targets, loss
from theory.mixing import beta_law, relabelled_law

Method = Literal["erm", "mixup", "mixupe-paper", "mixupe-official-v3", "mixupe-exact"]
METHODS: tuple[Method, ...] = get_args(Method)

# What a stack can hold, by the passes of a step: over the mixed batch, over the clean one, and over
# the tangents at the clean one. ERM's mixed batch is one with λ = 1.
_FAMILIES: dict[int, tuple[Method, ...]] = {
    1: ("erm", "mixup"),
    2: ("mixupe-paper", "mixupe-official-v3"),
    3: ("mixupe-exact",),
}
TAU = 1.0  # of mixupe-official-v3


@dataclass(frozen=True)
class Run:
    """One network's training.

    Attributes:
        seed: Of all its draws; also names its training data.
        method: Objective, of `deep.objective`.
        alpha: Beta's α = β; erm ignores it.
        eta: Strength η of MixupE's penalty; erm and mixup ignore it.
    """

    seed: int
    method: Method
    alpha: float = 1.0
    eta: float = 0.0


class Part(NamedTuple):
    """Prepared inputs and labels."""

    x: Float[Tensor, "rows inputs"]
    labels: Int[Tensor, " rows"]


def trained(
    runs: Sequence[Run],
    data: Mapping[int, Part],
    num_classes: int,
    settings: Optimization,
    *,
    width: int = 128,
    most: int = 40,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[list[Run], MLPStack]]:
    """Trains all runs, some at a time, and gives them as they are done.

    Args:
        runs: What to train, in any order.
        data: The training part of each seed; all of the same shape.
        num_classes: Number of logits.
        settings: Epochs, batch size, learning rate, SGD's momentum and weight decay.
        width: Units of the two hidden layers.
        most: Runs in a stack at most. Too few waste time between operations, too many the cache.
        progress: Called after each epoch with the number of runs that it trained.

    Raises:
        InputError: If a number of the settings is out of range or another optimiser asked for.
    """
    settings.check()
    if settings.optimizer != "sgd":
        raise InputError(f"stacks are trained by sgd, not by {settings.optimizer}")
    for family in _FAMILIES.values():
        members = sorted((run for run in runs if run.method in family), key=lambda run: run.seed)
        stacks = math.ceil(len(members) / most)
        for k in range(stacks):  # of equal size, or almost
            chosen = members[len(members) * k // stacks : len(members) * (k + 1) // stacks]
            training = _Training(chosen, data, num_classes, settings, width)
            for _ in range(-(-training.total // training.steps)):
                training.epoch()
                progress(len(chosen))
            yield chosen, training.stack


class _Training:
    """Training of runs of one family."""

    def __init__(
        self,
        runs: Sequence[Run],
        data: Mapping[int, Part],
        num_classes: int,
        settings: Optimization,
        width: int,
    ):
        seeds = sorted({run.seed for run in runs})
        parts = [data[seed] for seed in seeds]
        self.rows, inputs = parts[0].x.shape
        self.x = torch.cat([part.x for part in parts])
        dtype = self.x.dtype
        self.targets = as_targets(
            torch.cat([part.labels for part in parts]), num_classes, dtype=dtype
        )
        self.seed_of = torch.tensor([seeds.index(run.seed) for run in runs])
        self.mean = torch.stack([part.x.mean(0) for part in parts])[self.seed_of][:, None]

        self.passes = next(k for k, family in _FAMILIES.items() if runs[0].method in family)
        self.alphas = [None if run.method == "erm" else run.alpha for run in runs]
        self.strength = torch.tensor(
            [run.eta * relabelled_law(run.alpha).moment(1) for run in runs], dtype=dtype
        )
        self.paper = torch.tensor([run.method == "mixupe-paper" for run in runs])[:, None]

        networks, self.generators = zip(
            *(initial(seed, inputs, num_classes, width) for seed in seeds), strict=True
        )
        self.stack = MLPStack([networks[k].to(dtype) for k in self.seed_of])
        self.settings = settings
        self.optimizer = torch.optim.SGD(
            self.stack.parameters,
            settings.lr,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
            fused=True,
        )
        self.steps = steps_an_epoch(self.rows, settings.batch_size)
        self.total = math.ceil(settings.epochs * self.steps)
        self.index = 0

    def epoch(self) -> None:
        """One pass over the examples, or what is left of the last."""
        order, keys, u = draw_epoch(self.generators, self.rows, self.steps)
        order += self.rows * torch.arange(len(order))[:, None]  # each seed's rows in `x`
        lam = self._lam(u)
        size = self.settings.batch_size
        for step in range(min(self.steps, self.total - self.index)):
            here = slice(step * size, None if step == self.steps - 1 else (step + 1) * size)
            own = order[:, here]
            other = own.gather(1, keys[:, here].argsort(1))
            self._step(own[self.seed_of], other[self.seed_of], lam[:, step, None, None])

    def _lam(self, u: Float[Tensor, "seeds steps"]) -> Float[Tensor, "runs steps"]:
        """λ of each run and step: 1 for ERM, elsewhere the quantile of Beta(α, α) at u."""
        by_alpha: dict[float | None, Tensor] = {None: torch.ones_like(u)}
        for alpha in {alpha for alpha in self.alphas if alpha is not None}:
            by_alpha[alpha] = torch.from_numpy(beta_law(alpha).inverse(u.numpy()))
        pairs = zip(self.alphas, self.seed_of, strict=True)
        return torch.stack([by_alpha[alpha][k] for alpha, k in pairs]).to(self.x.dtype)

    def _step(
        self,
        own: Int[Tensor, "runs batch"],
        other: Int[Tensor, "runs batch"],
        lam: Float[Tensor, "runs 1 1"],
    ) -> None:
        """One optimiser step on the examples `own`, mixed with `other`."""
        clean, targets = _rows(self.x, own), _rows(self.targets, own)
        mixed = torch.lerp(_rows(self.x, other), clean, lam)
        mixed_targets = torch.lerp(_rows(self.targets, other), targets, lam)
        batch = [mixed]
        if self.passes > 1:
            batch.append(clean)
        if self.passes > 2:
            batch.append(self.mean - clean)
        values = own.shape[1] * min(self.passes, 2)

        given = self.stack.forward(torch.cat(batch, 1), values)
        logits = given[-1].requires_grad_()
        mixed_logits, *others = logits.split(own.shape[1], 1)
        risk = by_run(loss, mixed_logits, mixed_targets).mean(1)
        if others:
            total = risk + self.strength * self._penalty(targets, *others).mean(1)
            risk = eta_hat(risk, total) * total
        (gradient,) = torch.autograd.grad(risk.sum(), logits)
        self.stack.backward(given, gradient, values)

        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.index, self.steps)
        self.optimizer.step()
        self.index += 1

    def _penalty(
        self, targets: Tensor, logits: Tensor, tangents: Tensor | None = None
    ) -> Float[Tensor, "runs batch"]:
        """|q|, |q̂| or −q̂ below τ, as the run's objective wants it, of each clean example."""
        if tangents is not None:
            return ((logits.softmax(-1) - targets) * tangents).sum(-1).abs()
        estimate = by_run(q_hat, logits, targets)
        below = torch.where(estimate >= TAU, 0.0, estimate)  # a NaN stays
        return torch.where(self.paper, estimate.abs(), -below)


def _rows(table: Float[Tensor, "rows width"], chosen: Int[Tensor, "runs batch"]) -> Tensor:
    return table.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)


def by_run(
    function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> Float[Tensor, "runs rows"]:
    """A function of rows of logits and targets, on those of all runs."""
    return function(logits.flatten(0, 1), targets.flatten(0, 1)).unflatten(0, logits.shape[:2])


def steps_an_epoch(rows: int, batch_size: int) -> int:
    """As `deep.loop.Training`: a last batch of a single example joins the one before it."""
    return (rows - 2) // batch_size + 1


def initial(seed: int, inputs: int, num_classes: int, width: int) -> tuple[MLP, torch.Generator]:
    """The network that a seed's runs start from, and the generator of all their further draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(num_classes=num_classes, in_channels=inputs, image_size=(1, 1), width=width)
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
    return network, generator


class Draws(NamedTuple):
    """What each seed draws for an epoch.

    Attributes:
        order: Of the examples; each batch takes the next ones.
        keys: A batch's partners are the permutation that sorts its part of these.
        u: For each step, the place of λ in its law: λ is Beta(α, α)'s quantile there.
    """

    order: Int[Tensor, "seeds rows"]
    keys: Float[Tensor, "seeds rows"]
    u: Float[Tensor, "seeds steps"]


def draw_epoch(generators: Sequence[torch.Generator], rows: int, steps: int) -> Draws:
    """Draws from each seed's generator, in the order of `Draws`."""
    return Draws(
        torch.stack([torch.randperm(rows, generator=g) for g in generators]),
        torch.stack([torch.rand(rows, generator=g, dtype=torch.float64) for g in generators]),
        torch.stack([torch.rand(steps, generator=g, dtype=torch.float64) for g in generators]),
    )


@torch.no_grad()
def outcomes(
    stack: MLPStack, runs: Sequence[Run], data: Mapping[int, Part], rows: int = 1024
) -> tuple[Float[Tensor, " runs"], Float[Tensor, " runs"]]:
    """Mean loss, in nats, and share of misclassified examples; NaN for a run that diverged.

    Args:
        stack: Networks, one a run.
        runs: What `trained` gave with them.
        data: Examples to measure on, for each seed.
        rows: Examples of a run that are taken at once.
    """
    losses, misses = [], []
    for start in range(0, len(data[runs[0].seed].labels), rows):
        parts = [data[run.seed] for run in runs]
        logits = stack(torch.stack([part.x[start : start + rows] for part in parts]))
        labels = torch.stack([part.labels[start : start + rows] for part in parts])
        losses.append(F.cross_entropy(logits.movedim(2, 1), labels, reduction="none"))
        misses.append((logits.argmax(2) != labels).double())
    loss, error = torch.cat(losses, 1).mean(1), torch.cat(misses, 1).mean(1)
    finite = loss.isfinite()
    nan = torch.full_like(loss, math.nan)
    return torch.where(finite, loss, nan), torch.where(finite, error, nan)
