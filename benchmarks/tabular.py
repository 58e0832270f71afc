"""Training many small networks at once, over a loop and over `vmap`; ratios are loop over stack.

20 seeds × 5 objectives of a perceptron 47-128-128-10, as many examples and columns as Mfeat-zernike
has for training (1,200 × 47, random numbers), an epoch of batches of 32: 38 steps of 100 networks.
Each contestant also makes its networks and draws its batches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from benchmarks.timing import emit, interleaved
from deep.loop import Optimization
from deep.mixupe import eta_hat
from deep.models.mlp import MLP
from deep.objective import build_objective
from deep.stacked import METHODS, TAU, Method, Part, Run, trained
from theory.first_order import q_hat
from theory.losses import as_targets, loss, probabilities
from theory.mixing import beta_law, relabelled_law

SEEDS, ROWS, COLUMNS, CLASSES, WIDTH, BATCH = 20, 1200, 47, 10, 128, 32
ALPHA, ETA = 1.0, 0.001
SETTINGS = Optimization(epochs=1, batch_size=BATCH, lr=0.01)


def main(rounds: int = 5) -> None:
    """Prints the figures."""
    torch.manual_seed(0)
    data = {
        seed: Part(torch.randn(ROWS, COLUMNS), torch.randint(CLASSES, (ROWS,)))
        for seed in range(SEEDS)
    }
    seconds = interleaved(
        {"stack": lambda: _stack(data), "loop": lambda: _loop(data), "vmap": lambda: _vmap(data)},
        rounds,
    )
    steps = SEEDS * len(METHODS) * math.ceil(ROWS / BATCH)
    micro = {name: min(times) / steps * 1e6 for name, times in seconds.items()}
    note = ", ".join(f"{name} {value:.0f} µs a model-step" for name, value in micro.items())
    note += f"; {torch.get_num_threads()} threads"
    emit("tabular training, a loop over networks", seconds, "loop", "stack", 6.0, note)
    emit("tabular training, vmap over functional_call", seconds, "vmap", "stack", None, note)


def _stack(data: dict[int, Part]) -> None:
    runs = [Run(seed, method, ALPHA, ETA) for method in METHODS for seed in data]
    for _ in trained(runs, data, CLASSES, SETTINGS, width=WIDTH):
        pass


def _loop(data: dict[int, Part]) -> None:
    for method in METHODS:
        for part in data.values():
            _alone(method, part)


def _vmap(data: dict[int, Part]) -> None:
    for method in METHODS:
        _vmapped(method, data)


def _perceptron() -> MLP:
    return MLP(num_classes=CLASSES, in_channels=COLUMNS, image_size=(1, 1), width=WIDTH)


def _optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, 0.9, weight_decay=1e-4, nesterov=True, fused=True)


def _alone(method: Method, part: Part) -> None:
    """One network by its objective."""
    model = _perceptron()
    objective = build_objective(
        method, model, alpha=ALPHA, eta=ETA, mean=part.x.mean(0), generator=torch.Generator()
    )
    optimizer = _optimizer(list(model.parameters()))
    targets = as_targets(part.labels, CLASSES)
    for chosen in torch.randperm(ROWS).split(BATCH):
        optimizer.zero_grad()
        objective(part.x[chosen], targets[chosen]).backward()
        optimizer.step()


def _vmapped(method: Method, data: dict[int, Part]) -> None:
    """All seeds of a method: PyTorch's way to train an ensemble."""
    stacked, _ = stack_module_state([_perceptron() for _ in data])
    parameters = {name: nn.Parameter(value.detach()) for name, value in stacked.items()}
    optimizer = _optimizer(list(parameters.values()))
    gradient = vmap(grad(_objective(method)))
    x = torch.stack([part.x for part in data.values()])
    targets = torch.stack([as_targets(part.labels, CLASSES) for part in data.values()])
    order = torch.stack([torch.randperm(ROWS) for _ in data])
    means, seeds = x.mean(1), torch.arange(len(data))[:, None]
    for chosen in order.split(BATCH, 1):
        partner = torch.rand(chosen.shape).argsort(1)
        lam = beta_law(ALPHA).sample(len(data)).float()
        rows = x[seeds, chosen], targets[seeds, chosen]
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        for name, value in gradient(values, *rows, partner, lam, means).items():
            parameters[name].grad = value
        optimizer.step()


def _objective(method: Method) -> Callable[..., Tensor]:
    """The objective of a method as a function of the parameters of one network."""
    base = _perceptron().to("meta")
    strength = ETA * relabelled_law(ALPHA).moment(1)

    def total(
        parameters: dict[str, Tensor], x: Tensor, targets: Tensor, partner: Tensor, lam: Tensor,
        mean: Tensor,
    ) -> Tensor:  # fmt: skip
        def logits(rows: Tensor) -> Tensor:
            return functional_call(base, parameters, (rows,))

        if method == "erm":
            return loss(logits(x), targets).mean()
        mixup_loss = loss(logits(_mix(x, partner, lam)), _mix(targets, partner, lam)).mean()
        if method == "mixup":
            return mixup_loss
        if method == "mixupe-exact":
            f, tangent = jvp(logits, (x,), (mean - x,))[:2]
            penalty = ((probabilities(f) - targets) * tangent).sum(1).abs().mean()
        else:
            q = q_hat(logits(x), targets)
            penalty = (
                q.abs().mean() if method == "mixupe-paper" else -torch.where(q >= TAU, 0, q).mean()
            )
        whole = mixup_loss + strength * penalty
        return eta_hat(mixup_loss, whole) * whole

    return total


def _mix(rows: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    return lam * rows + (1 - lam) * rows[partner]
