"""What exact q and its approximations cost over a plain forward pass, as values and as penalties.

Also that the n² computation's memory is flat.

PreActResNet-18, evaluation mode, batch 16, float32, 3 × 32 × 32 inputs; the check that training
runs (`theory.probe`) on 256 examples.
"""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import emit, interleaved
from deep.models import build_model
from theory.agreement import compare
from theory.attribution import LayerShares
from theory.corrections import difference_quotient
from theory.first_order import directional_q, first_order, loss_gradient, q_hat
from theory.losses import loss
from theory.network import Function, evaluating
from theory.probe import measure_probe
from theory.regularizer import mixup_risk

BATCH = 16
PROBE = 256


def main() -> None:
    """Prints the figures."""
    torch.manual_seed(0)
    model = build_model("preact18")
    x = torch.randn(BATCH, 3, 32, 32)
    targets = torch.eye(10)[torch.arange(BATCH) % 10]
    mean = x.mean(0)
    with evaluating(model) as f:
        seconds = interleaved(_contestants(model, f, x, targets, mean))
    settings = f"PreActResNet-18, batch {BATCH}, {torch.get_num_threads()} threads"
    for name, contestant, goal in (
        ("exact q by one vjp", "vjp", 2.5),
        ("exact q, both gaps and the attribution by layer", "attributed", 4.0),
        ("exact q by torch.func.jvp", "jvp", None),
        ("q by a difference quotient", "quotient", None),
        ("q̂ as a penalty, with its parameter gradient", "penalty q̂", None),
        ("the difference quotient as a penalty", "penalty quotient", None),
        ("exact q as a penalty, by double backward", "penalty vjp", None),
    ):
        emit(name, seconds, contestant, "forward", goal, settings)
    _emit_probe(model)
    _emit_memory()


def _contestants(model: nn.Module, f: Function, x: Tensor, targets: Tensor, mean: Tensor) -> dict:
    def forward() -> None:
        with torch.no_grad():
            f(x)

    def attributed() -> None:
        with LayerShares(model):
            first_order(f, x, targets, mean)

    def quotient() -> Tensor:
        return difference_quotient(f, x, targets, mean, loss(f(x), targets))

    def no_graph() -> None:
        with torch.no_grad():
            quotient()

    def penalty(values: Tensor) -> None:
        torch.autograd.grad(values.abs().sum(), parameters, allow_unused=True)

    def exact() -> Tensor:
        _, c = loss_gradient(f, x, targets, create_graph=True)
        return (c * (mean - x)).flatten(1).sum(1)

    parameters = list(model.parameters())
    return {
        "forward": forward,
        "quotient": no_graph,
        "penalty q̂": lambda: penalty(q_hat(f(x), targets)),
        "penalty quotient": lambda: penalty(quotient()),
        "penalty vjp": lambda: penalty(exact()),
        "vjp": lambda: first_order(f, x, targets, mean),
        "attributed": attributed,
        "jvp": lambda: directional_q(f, x, targets, mean - x),
    }


def _emit_probe(model: nn.Module) -> None:
    """The check inside training, over forward passes of the same examples."""
    torch.manual_seed(0)
    x = torch.randn(PROBE, 3, 32, 32)
    targets = torch.eye(10)[torch.arange(PROBE) % 10]
    mean = x.mean(0)
    batches = zip(x.split(32), targets.split(32), strict=True)
    with evaluating(model) as f:
        terms = [first_order(f, *batch, mean) for batch in batches]
    q, estimate = (
        torch.cat([getattr(t, name) for t in terms]).double().numpy() for name in ("q", "q_hat")
    )

    def forward() -> None:
        with torch.no_grad(), evaluating(model) as f:
            for piece in x.split(32):
                f(piece)

    def probe(gradients: bool) -> dict[str, Any]:
        return measure_probe(model, x, targets, mean, batch_size=32, gradients=gradients)

    contestants = {
        "forward": forward,
        "intervals": lambda: compare(q, estimate),
        "probe": lambda: probe(gradients=False),
        "probe with gradients": lambda: probe(gradients=True),
    }
    seconds = interleaved(contestants, rounds=3)
    settings = f"PreActResNet-18, {PROBE} examples in batches of 32"
    emit("check inside training", seconds, "probe", "forward", 4.0, settings)
    emit("check inside training, with gradient alignment by double backward", seconds,
         "probe with gradients", "forward", 14.0, settings)  # fmt: skip
    emit("bootstrap intervals of one comparison", seconds, "intervals", "forward", None, settings)


def _emit_memory() -> None:
    """Peak memory of the n² risk at n = 128 over that at n = 16, each in a process of its own.

    Read from Linux's /proc; elsewhere there is no figure.
    """
    if not Path("/proc/self/status").exists():
        return
    context = multiprocessing.get_context("spawn")
    peaks = []
    for n in (16, 128):
        with context.Pool(1) as pool:
            peaks.append(pool.apply(_peak_mebibytes, (n,)))
    figure = {
        "name": "peak memory of the n² risk, n = 128",
        "ratio": round(peaks[1] / peaks[0], 3),
        "goal": 1.05,
        "baseline": "n = 16",
        "mebibytes": peaks,
        "note": "LeNet, 4 nodes, pieces of 256 rows; the whole process",
    }
    print(json.dumps(figure, ensure_ascii=False), flush=True)


def _peak_mebibytes(n: int) -> int:
    torch.manual_seed(0)
    x, targets = torch.randn(n, 3, 32, 32), torch.eye(10)[torch.arange(n) % 10]
    with evaluating(build_model("lenet")) as f:
        mixup_risk(f, x, targets, alpha=1.0, nodes=4)
    # Not getrusage: its peak survives exec, and so would be that of the parent process.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


if __name__ == "__main__":
    main()
