"""What one process, or each of several, does in tests/test_deep_processes.py."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deep.loop import Optimization, Training
from deep.objective import OBJECTIVES, build_objective
from deep.processes import gather, mean_over_processes, rank, wait_for_first, world_size
from theory.errors import InputError

SAMPLES, BATCH, STEPS = 80, 16, 20

# Every objective with one λ a batch and one a sample, and the baselines by binary cross-entropy.
CASES = [
    *((name, {"lam": lam}) for name in OBJECTIVES for lam in ("batch", "sample")),
    *((name, {"loss": "bce-softmax"}) for name in ("erm", "mixup", "manifold_mixup")),
]


class FrozenNorm(nn.BatchNorm1d):
    """Batch norm that normalises by its running statistics in training, too."""

    def train(self, mode: bool = True) -> "FrozenNorm":
        return super().train(False)


class StagedNet(nn.Module):
    """Linear layers in two stages; normalised by frozen statistics, or not at all."""

    def __init__(self, normed: bool):
        super().__init__()
        self.stages = nn.Sequential()
        for features in (5, 8):
            layers = nn.Sequential(nn.Linear(features, 8), nn.ReLU())
            if normed:
                norm = FrozenNorm(8)
                nn.init.uniform_(norm.running_mean, -0.5, 0.5)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                layers.insert(1, norm)
            self.stages.append(layers)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stages(x))


def train(normed: bool, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Losses, accuracies and parameters of 20 steps of SGD on batches of 16, over all processes."""
    torch.manual_seed(0)
    model = StagedNet(normed).double()
    x = torch.randn(SAMPLES, 5, dtype=torch.float64)
    labels = x[:, :3].argmax(1)
    targets = torch.eye(3, dtype=torch.float64)[labels]
    # A strong penalty, and a τ that leaves some examples out: their part must show.
    objective = build_objective(
        name, model, eta=0.5, tau=0.1, mean=x.mean(0), generator=torch.Generator().manual_seed(1),
        **options,
    )  # fmt: skip
    settings = Optimization(epochs=STEPS * BATCH / SAMPLES, batch_size=BATCH, lr=0.05)
    generator = torch.Generator().manual_seed(2)
    steps = list(Training(objective, x, targets, settings, generator=generator))
    return {
        "losses": [step.loss for step in steps],
        "accuracies": [step.accuracy for step in steps],
        "parameters": torch.cat([p.detach().flatten() for p in model.parameters()]),
    }


def train_all() -> dict[str, Any]:
    """The results of all cases."""
    return {
        f"{name} {option} {'normed' if normed else 'plain'}": train(normed, name, option)
        for normed in (False, True)
        for name, option in CASES
    }


def collectives() -> dict[str, Any]:
    """What the helpers of `deep.processes` give, for rows that tell who held them."""
    own = torch.arange(6.0).reshape(3, 2) + 10 * rank()
    leaf = own.clone().requires_grad_()
    gathered = gather(leaf)
    # The weights differ between processes: each row's gradient is the sum over both.
    weights = torch.arange(float(gathered.numel())).reshape(gathered.shape) * (1 + 2 * rank())
    (gradient,) = torch.autograd.grad((weights * gathered).sum(), leaf)
    value = torch.tensor([1.0 + rank(), 5.0], requires_grad=True)
    mean = mean_over_processes(value)

    def refuse() -> None:
        raise InputError("the first one refuses")

    try:
        wait_for_first(refuse)
        refused = "nothing"
    except InputError as error:
        refused = str(error)
    return {
        "rank": rank(), "world_size": world_size(), "plain": gather(own),
        "gathered": gathered.detach(), "gradient": gradient, "mean": mean,
        "mean_is_constant": not mean.requires_grad, "value_is_kept": value.tolist(),
        "first": wait_for_first(lambda: f"by {rank()}"), "refused": refused,
    }  # fmt: skip


def one_of_two(number: int, folder: str) -> None:
    """Joins the other process, does everything, and leaves results and what differs in files."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2
    )  # fmt: skip
    results = {"collectives": collectives(), "trained": train_all()}
    torch.save(results, Path(folder) / f"{number}.pt")
    dist.destroy_process_group()
