"""Small networks of every kind that users bring, for the tests of `theory`, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theory.losses import Head, as_targets


@dataclass(frozen=True)
class Case:
    """How to build a network, and what is known of it.

    Attributes:
        name: Of the case.
        build: Makes the network; parameters are drawn from torch's global generator.
        shape: One input's shape.
        classes: Number of logits.
        head: The loss that it is meant for.
        smooth: Whether f has all derivatives everywhere (no ReLU, no max-pooling).
        modular: Whether all that breaks homogeneity happens inside leaf modules.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    head: Head = "softmax"
    smooth: bool = True
    modular: bool = True


@dataclass(frozen=True)
class Problem:
    """A network with random data, ready to be measured."""

    case: Case
    model: nn.Module
    x: Tensor
    labels: Tensor
    targets: Tensor
    mean: Tensor
    head: Head


class InstanceNormNet(nn.Module):
    """Convolutions with instance norm, group norm and a shared layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.group = nn.GroupNorm(2, 4)
        self.mix = nn.Conv2d(4, 4, 1)  # used twice
        self.act = nn.Softplus()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.instance(self.conv(x)))
        x = self.mix(self.act(self.group(self.mix(x))))
        return self.fc(x.mean((2, 3)))


class InplaceResidualNet(nn.Module):
    """A residual block that overwrites its tensors, as memory-saving code does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.silu = nn.SiLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.relu(self.bn(x))
        out = self.conv(out)
        out += x
        return self.fc(self.pool(self.silu(out)).flatten(1))


class FunctionalNet(nn.Module):
    """Every operation is a functional call on hand-held parameters but the last."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5) / 2)
        self.shift = nn.Parameter(torch.randn(6) / 2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.weight) + self.shift
        return self.fc(torch.sin(z) * F.gelu(z) + torch.logaddexp(z, z.flip(1)))


class TransformerNet(nn.Module):
    """One encoder layer on a short sequence."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            4, nhead=2, dim_feedforward=6, dropout=0.2, activation=nn.GELU(), batch_first=True
        )
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x).mean(1))


class SingleLogitNet(nn.Module):
    """Returns shape (batch,), as many binary classifiers do."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(3, 5)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x))).squeeze(1)


CASES = [
    Case(
        "tanh-mlp",
        lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)),
        shape=(5,),
        classes=4,
    ),
    Case(
        "gelu-conv-batch-norm",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(3, affine=False),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(27, 3),
        ),
        shape=(2, 6, 6),
        classes=3,
    ),
    Case(
        "relu-mlp",
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1),
            nn.Linear(8, 3),
        ),
        shape=(2, 3),
        classes=3,
        smooth=False,
    ),
    Case(
        "relu-conv-no-bias",
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(12, 5, bias=False), nn.PReLU(), nn.Linear(5, 3, bias=False),
        ),
        shape=(1, 6, 6),
        classes=3,
        smooth=False,
    ),
    Case(
        "layer-norm",
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.LayerNorm(6), nn.SiLU(), nn.Flatten(), nn.Linear(18, 3)
        ),
        shape=(3, 4),
        classes=3,
    ),
    Case("instance-norm-shared-layer", InstanceNormNet, shape=(2, 4, 5), classes=3),
    Case("inplace-residual", InplaceResidualNet, shape=(1, 4, 4), classes=4, smooth=False),
    Case("functional", FunctionalNet, shape=(5,), classes=3, modular=False),
    Case("transformer", TransformerNet, shape=(3, 4), classes=3),
    Case("single-logit", SingleLogitNet, shape=(3,), classes=1, head="sigmoid"),
    Case(
        "multi-label",
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)),
        shape=(4,),
        classes=3,
        head="sigmoid",
        smooth=False,  # ELU has no second derivative at 0
    ),
]  # fmt: skip

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_smooth_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.smooth], ids=lambda case: case.name
)
every_modular_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.modular], ids=lambda case: case.name
)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def randomize_norms(model: nn.Module) -> nn.Module:
    """Gives every normalisation running statistics, scales and shifts as after training."""
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or "Norm" not in type(module).__name__:
                continue
            with torch.no_grad():
                if name in ("running_var", "weight"):
                    tensor.uniform_(0.5, 1.5)
                elif name in ("running_mean", "bias"):
                    tensor.normal_(0, 0.5)
    return model


def make_problem(case: Case, n: int = 4, seed: int = 0, soft: bool = True) -> Problem:
    """The case's network in training mode, with n examples in float64.

    Labels are soft rows by default: a mistake in a Hessian or a label shows in them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = randomize_norms(case.build()).double()
        x = torch.randn(n, *case.shape, dtype=torch.float64) + 0.3
        rows = torch.rand(n, case.classes, dtype=torch.float64)
        if case.head == "softmax":
            rows = rows / rows.sum(1, keepdim=True)
        labels = rows if soft else torch.randint(max(case.classes, 2), (n,))
    targets = as_targets(labels, case.classes, case.head, dtype=torch.float64)
    return Problem(case, model, x, labels, targets, x.mean(0), case.head)
