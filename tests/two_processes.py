"""Trains small networks by every objective, in one process or in several, for the tests.

`python tests/two_processes.py FILE` under the variables that `torchrun` sets writes what a process
found to FILE, with its rank in the name.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deep.loop import Optimization, Training
from deep.models import build_model
from deep.objective import OBJECTIVES, build_objective
from deep.processes import gather, mean_over_processes, processes, rank, world_size

BATCH, CLASSES = 12, 4
SHAPE = (3, 8, 8)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises by its running statistics, also in train mode."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


def without_norm() -> nn.Module:
    """A smooth network with two stages to mix after."""
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Tanh()),
        nn.Sequential(nn.Conv2d(6, 5, 3), nn.Softplus()),
        nn.Flatten(),
        nn.Linear(5, CLASSES),
    )
    model.mixing_layers = [model[0], model[1]]
    return model


def with_frozen_norm() -> nn.Module:
    """A residual network whose batch norms keep statistics that are not the fresh ones."""
    model = build_model("preact18", in_channels=3, image_size=8, num_classes=CLASSES, width=2)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features)
                nn.init.uniform_(frozen.running_mean, -0.3, 0.3)
                nn.init.uniform_(frozen.running_var, 0.5, 2.0)
                setattr(module, name, frozen)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "without norm": without_norm,
    "frozen norm": with_frozen_norm,
}


def cases() -> list[tuple[str, str, str, str]]:
    """(network, objective, lam, loss)."""
    found = []
    for network in NETWORKS:
        found += [(network, o, lam, "cross-entropy") for o in OBJECTIVES for lam in ("batch", "sample")
                  if not (o == "erm" and lam == "sample")]  # fmt: skip
        found += [(network, o, "batch", "bce-softmax") for o in ("erm", "manifold_mixup")]
    return found


def train(network: str, objective: str, lam: str, loss: str) -> dict[str, Any]:
    """20 SGD steps of a strong penalty, in float64; what each step saw, and the parameters."""
    torch.manual_seed(5)
    model = NETWORKS[network]().double()
    x = torch.randn(4 * BATCH, *SHAPE, dtype=torch.float64)
    # Soft labels for some, and processes whose shares differ much in size of x and so of loss.
    targets = torch.eye(CLASSES, dtype=torch.float64)[torch.arange(len(x)) % CLASSES]
    targets[::3] = torch.rand(len(targets[::3]), CLASSES, dtype=torch.float64).softmax(1)
    x[::2] *= 2
    built = build_objective(
        objective, model, lam=lam, loss=loss, alpha=0.8, beta=1.3, eta=2.0, tau=0.1,
        mean=torch.full(SHAPE, 0.2, dtype=torch.float64), generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    settings = Optimization(
        epochs=5, batch_size=BATCH, lr=0.05, weight_decay=1e-3, warmup_epochs=0.0
    )
    steps = list(Training(built, x, targets, settings, generator=torch.Generator().manual_seed(4)))
    return {
        "loss": torch.tensor([step.loss for step in steps], dtype=torch.float64),
        "accuracy": torch.tensor([step.accuracy for step in steps], dtype=torch.float64),
        "parameters": torch.cat([p.detach().flatten() for p in model.parameters()]),
    }


def collectives() -> dict[str, Any]:
    """What `gather` and `mean_over_processes` give for rows that name their process."""
    share = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).T + 10 * rank()  # not contiguous
    rows = share.clone().requires_grad_()
    weight = torch.arange(6.0 * world_size(), dtype=torch.float64).reshape(-1, 3) + 100 * rank()
    (weight * gather(rows) ** 2).sum().backward()
    mean = mean_over_processes(rows.sum() * (1 + rank()))
    return {
        "rank": rank(),
        "world_size": world_size(),
        "gathered": gather(share),
        "gradient": rows.grad,
        "mean": mean,
        "mean_requires_grad": mean.requires_grad,
    }


def run() -> dict[str, Any]:
    """All cases, and the collectives."""
    found: dict[str, Any] = {" ".join(case): train(*case) for case in cases()}
    return {"collectives": collectives(), **copy.deepcopy(found)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    with processes(torch.device("cpu")):
        result = run()
        torch.save(result, path.with_name(f"{path.stem}-{rank()}{path.suffix}"))
