"""What an optimiser step costs by objective, over a step of Mixup; and what goes on beside it.

PreActResNet-18, batch 32, float32, 3 × 32 × 32 inputs; steps of `deep.loop.Training`.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import emit, interleaved
from deep.augment import crop_and_flip
from deep.loop import Optimization, Training
from deep.models import build_model
from deep.objective import OBJECTIVES, build_objective
from deep.resume import Checkpoints

BATCH, EXAMPLES = 32, 50_000
GOALS = {"mixupe-paper": 2.05, "mixupe-exact": 3.7}
CHECKPOINT_SECONDS = 60.0


def main() -> None:
    """Prints the figures."""
    torch.manual_seed(0)
    x = torch.randn(20 * BATCH, 3, 32, 32)
    targets = torch.eye(10)[torch.arange(len(x)) % 10]
    trainings: dict[str, Training] = {name: _training(name, x, targets) for name in OBJECTIVES}
    steps = {name: _stepper(training) for name, training in trainings.items()}
    seconds = interleaved(steps, rounds=9)
    settings = f"PreActResNet-18, batch {BATCH}, {torch.get_num_threads()} threads"
    for name in OBJECTIVES:
        emit(f"step of {name}", seconds, name, "mixup", GOALS.get(name), settings)
    _emit_loading(steps["erm"], settings)
    _emit_checkpoint(trainings["mixup"], settings)


def _training(name: str, x: Tensor, targets: Tensor) -> Training:
    torch.manual_seed(0)
    objective = build_objective(
        name, build_model("preact18"), mean=x.mean(0), generator=torch.Generator().manual_seed(0)
    )
    settings = Optimization(epochs=100, batch_size=BATCH, lr=0.01)
    return Training(objective, x, targets, settings, generator=torch.Generator().manual_seed(0))


def _stepper(training: Training) -> Callable[[], object]:
    steps = iter(training)
    return lambda: next(steps)


def _emit_loading(step: Callable[[], object], settings: str) -> None:
    """Taking a batch out of a data set of CIFAR's size, cropping and flipping it."""
    data = torch.randn(EXAMPLES, 3, 32, 32)
    chosen = torch.randperm(EXAMPLES)[:BATCH]

    def load() -> None:
        crop_and_flip(
            data[chosen], chosen, 3, seed=0, padding=2, flip=True, fill=torch.zeros(3)
        )  # fmt: skip

    seconds = interleaved({"load": load, "step": step}, rounds=9)
    emit("a batch taken out and augmented", seconds, "load", "step", 0.05, f"ERM, {settings}")


def _emit_checkpoint(training: Training, settings: str) -> None:
    """A checkpoint a minute, over that minute."""
    times = []
    with tempfile.TemporaryDirectory(dir=".") as folder:  # a disk, where /tmp may be memory
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        model = training.objective.model
        assert isinstance(model, torch.nn.Module)
        for step in range(8):
            start = time.perf_counter()
            checkpoints.save(step, model, {"training": training.state_dict()})
            times.append(time.perf_counter() - start)
    figure = {
        "name": "a checkpoint a minute",
        "ratio": round(statistics.median(times) / CHECKPOINT_SECONDS, 5),
        "goal": 0.01,
        "baseline": "a minute",
        "seconds": [round(t, 5) for t in (min(times), statistics.median(times), max(times))],
        "note": settings,
    }
    print(json.dumps(figure, ensure_ascii=False), flush=True)
