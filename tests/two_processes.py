"""What one process, or each of several, does in tests/test_deep_processes.py."""

import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deep.batch_norm import synchronize_batch_norm
from deep.loop import Optimization, Training
from deep.objective import OBJECTIVES, build_objective
from deep.processes import gather, mean_over_processes, rank, wait_for_first, world_size
from theory.errors import InputError

SAMPLES, BATCH, STEPS = 80, 16, 20
Norm = Literal["none", "frozen", "synchronized"]

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
    """Two stages, normalised by frozen or the batch's statistics or not at all.

    Batch norm straight after a linear layer would undo a common move towards the mean: q would be
    zero but for its eps.
    """

    def __init__(self, norm: Norm):
        super().__init__()
        self.stages = nn.Sequential()
        for features in (5, 8):
            layers = nn.Sequential(nn.Linear(features, 8), nn.ReLU())
            if norm != "none":
                layer = FrozenNorm(8) if norm == "frozen" else nn.BatchNorm1d(8)
                nn.init.uniform_(layer.running_mean, -0.5, 0.5)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
                nn.init.uniform_(layer.weight, 0.5, 2.0)
                layers.append(layer)
            self.stages.append(layers)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stages(x))


def train(norm: Norm, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Losses, accuracies and parameters of 20 steps of SGD on batches of 16, over all processes."""
    torch.manual_seed(0)
    model = synchronize_batch_norm(StagedNet(norm)).double()
    x = torch.randn(SAMPLES, 5, dtype=torch.float64)
    targets = torch.eye(3, dtype=torch.float64)[x[:, :3].argmax(1)]
    targets[::3] = torch.rand(len(targets[::3]), 3, dtype=torch.float64).softmax(1)
    x[::2] *= 3  # the processes' halves of a batch are then unlike each other
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
        "statistics": torch.cat([b.double().flatten() for _, b in model.named_buffers()] or [x[0]]),
    }


def train_all() -> dict[str, Any]:
    """The results of all cases."""
    return {
        f"{name} {option} norm: {norm}": train(norm, name, option)
        for norm in get_args(Norm)
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
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2
    )  # fmt: skip
    results = {"collectives": collectives(), "trained": train_all()}
    torch.save(results, Path(folder) / f"{number}.pt")
    dist.destroy_process_group()
