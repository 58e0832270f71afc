"""One training run, from its flags to its folder: prepared, carried out, watched, resumed.

The command `python -m deep.train` is in a module of its own, so that its --help loads no data
reader and nothing that checks.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from deep.augment import crop_and_flip
from deep.batch_norm import synchronize_batch_norm
from deep.checkpoint import load_weights, save_weights
from deep.data.examples import Examples, in_proportion
from deep.data.graphs import GraphExamples
from deep.data.images import ImageData
from deep.data.load import load_examples
from deep.loop import Augment, Step, Training
from deep.models import resolve_model
from deep.objective import build_objective
from deep.processes import choose_device, rank, wait_for_first, world_size
from deep.recipes import Config
from deep.resume import Checkpoints
from deep.run_folder import (
    CHECKPOINTS,
    LOG,
    RECIPE,
    RESULT,
    STOPPING,
    WEIGHTS,
    best,
    has_ended,
    locked,
    read_lines,
)
from deep.watch import Watch
from theory.errors import InputError
from theory.losses import as_targets
from theory.network import count_logits
from theory.record import command_line, environment, recorded, write_json


class Stopped(Exception):
    """A signal ended the run after a checkpoint.

    Attributes:
        code: Exit code of the process: 128 + the signal's number.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by signal {code - 128}")
        self.code = code


def train(config: Config, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Runs, or goes on with, the training that a configuration asks for.

    Args:
        config: The flags; the run's files go to `config.folder`.
        on_epoch: Called with each new line of the log.

    Raises:
        InputError: If a flag, file, network or data set cannot be used, the loss becomes NaN or
            infinite, or a file cannot be written. Checkpoints stay as they are.
        Stopped: On SIGTERM, SIGINT or SIGUSR2, after a checkpoint.
    """
    config.check()
    with ExitStack() as stack:

        def claim() -> bool:
            stack.enter_context(locked(config.folder))
            return has_ended(
                config.folder, config.settings(), resume=config.resume, force=config.force
            )

        if not wait_for_first(claim):
            _train(config, on_epoch)


def _train(config: Config, on_epoch: Callable[[dict[str, Any]], None] | None) -> None:
    first = rank() == 0
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    torch.manual_seed(config.seed)
    data = load_examples(config.data, config.data_dir)
    if isinstance(data, GraphExamples):
        raise InputError(
            f"{data.name} holds graphs: train on them by python -m deep.table 6, or for a while by "
            "python -m theory.check_approx --model gin"
        )
    model, training, watch = prepare(config, data)
    checkpoints = Checkpoints(config.folder / CHECKPOINTS, config.keep)
    if config.resume:
        state = checkpoints.load(model, warn=_warn if first else lambda _: None)
        if state is not None:
            with recorded(checkpoints.folder):
                training.load_state_dict(state["training"])
                watch.load_state_dict(state["watch"])
            if training.index >= training.total:
                raise InputError(
                    f"{training.index} steps are done, and --epochs {config.epochs:g} has only "
                    f"{training.total}: ask for more epochs"
                )
    if first:  # not before: settings that are refused are not written, and change no old run
        watch.open()
        write_json(config.folder / RECIPE, config.settings())

    def save() -> None:
        if first:
            state = {"training": training.state_dict(), "watch": watch.state_dict()}
            checkpoints.save(training.index, model, state)

    saved = time.monotonic()
    with _signals(training) as received, _bar(config, training) as bar:
        if first and training.index == 0 and config.check_every > 0:
            watch.check(config.learning_rate(0, training.steps_per_epoch))
        for step in training:
            watch.add(step)
            last = step.index + 1 == step.total
            due = config.check_every > 0 and last
            if first and (due or _completes(step, training, config.check_every)):
                watch.check(step.lr)
            if last or _completes(step, training, 1.0):
                line = watch.log(step) if first else {}
                watch.restart()
                if first and on_epoch:
                    on_epoch(line)
            if step.stopping and not last:
                save()
                raise Stopped(128 + (received[0] if received else signal.SIGTERM))
            if not last and _is_due(config, step, time.monotonic() - saved):
                save()
                saved = time.monotonic()
            bar.update(config.batch_size)
    if first:
        save_weights(model, config.folder / WEIGHTS)
        write_json(config.folder / RESULT, _result(config, data, training, watch))
        checkpoints.remove()


def prepare(config: Config, data: Examples) -> tuple[nn.Module, Training, Watch]:
    """The network and its objective, ready to train, and what watches them."""
    device = choose_device(config.device)
    held_out, kept = in_proportion(data.y_train, config.validation, seed=0)
    x, labels = data.x_train[kept], data.y_train[kept]
    mean = x.mean(0).to(device)
    model = _network(config, data, device)
    targets = as_targets(labels, count_logits(model, x[:2].to(device)), config.head)
    objective = build_objective(
        config.objective, model, head=config.head, alpha=config.alpha, beta=config.beta,
        eta=config.eta, tau=config.tau, lam=config.lam, clean_statistics=config.clean_statistics,
        loss=config.loss, mean=mean, generator=torch.Generator().manual_seed(config.seed),
    )  # fmt: skip
    training = Training(
        objective, x, targets, config, generator=torch.Generator().manual_seed(config.seed),
        augment=_augment(config, data, device), autocast=config.precision == "bfloat16",
    )  # fmt: skip
    probe, _ = in_proportion(labels, min(config.check_samples, len(x)), config.seed)
    parts = {
        "train": (x[: config.log_samples], labels[: config.log_samples]),
        "validation": (data.x_train[held_out], data.y_train[held_out]),
        "test": (data.x_test, data.y_test),
    }
    on_probe = x[probe].to(device), targets[probe].to(device)
    return model, training, Watch(config.folder, config, model, training, parts, on_probe, mean)


def _network(config: Config, data: Examples, device: torch.device) -> nn.Module:
    channels, height, width = data.image_shape
    model = resolve_model(
        config.model, num_classes=data.num_classes, in_channels=channels,
        image_size=(height, width), width=config.width,
    ).to(device)  # fmt: skip
    if config.checkpoint is not None:
        load_weights(model, config.checkpoint)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world_size() > 1:
        model = synchronize_batch_norm(model)
    if config.compile:
        model.compile()
    return model


def _augment(config: Config, data: Examples, device: torch.device) -> Augment | None:
    if config.crop_padding == 0 and not config.flip:
        return None
    if not isinstance(data, ImageData):
        raise InputError(f"crop_padding and flip are for images: leave them out for {data.name}")
    black = -torch.tensor(data.mean, device=device) / torch.tensor(data.std, device=device)
    return partial(
        crop_and_flip, seed=config.seed, padding=config.crop_padding, flip=config.flip, fill=black
    )


def _completes(step: Step, training: Training, every: float) -> bool:
    """Whether the step completed another `every` epochs."""
    if every == 0:
        return False
    before, after = (
        math.floor((step.index + k) / training.steps_per_epoch / every + 1e-9) for k in (0, 1)
    )
    return after > before


def _is_due(config: Config, step: Step, seconds: float) -> bool:
    if config.checkpoint_steps is not None:
        return (step.index + 1) % config.checkpoint_steps == 0
    return 0 < config.checkpoint_minutes * 60 <= seconds


@contextmanager
def _signals(training: Training) -> Iterator[list[int]]:
    """Turns `STOPPING` into a stop after the step; a second signal has its usual effect.

    Yields:
        The signals received.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, _: Any) -> None:
        received.append(number)
        training.stop = True
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in map(int, STOPPING):
            before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(config: Config, training: Training) -> Iterator[tqdm]:
    """A bar over the examples with throughput and time left, silent without a terminal."""
    with tqdm(
        total=training.total * config.batch_size, initial=training.index * config.batch_size,
        disable=True if rank() > 0 else None, unit="example", unit_scale=True, smoothing=0.05,
        desc=f"{config.objective} {Path(config.model).stem}",
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left, "
        "{rate_fmt}",
    ) as bar:  # fmt: skip
        yield bar


def _result(config: Config, data: Examples, training: Training, watch: Watch) -> dict[str, Any]:
    lines = read_lines(config.folder / LOG)
    return {
        "command": command_line("deep.train"),
        "recipe": config.settings(),
        "last": lines[-1],
        "best_on_validation": best(lines, "validation"),
        # Chosen by the very numbers that it reports: what selection could give at best, no result.
        "best_on_test": best(lines, "test"),
        "parameters": sum(p.numel() for p in training.objective.parameters()),
        "source": data.source,
        "examples": {
            "train": len(training.x), "validation": config.validation, "test": len(data.x_test),
        },
        "device": str(training.device),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "seconds": round(watch.seconds, 1),
        "steps_per_second": training.total / watch.seconds,
        "environment": environment(),
    }  # fmt: skip


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
