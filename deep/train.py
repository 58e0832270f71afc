"""Command: train a network by any objective, watched while it trains, and resumed exactly.

`python -m deep.train --recipe quick-digits --objective mixup` needs nothing else. Several
processes: `torchrun --nproc-per-node 2 -m deep.train …`, by gloo on CPUs and NCCL on GPUs.

With --resume a run that was stopped in any way goes on from its last checkpoint, and its logs and
final weights are bit for bit those of the uninterrupted run (same machine, same numbers of threads
and processes). `deep.run_folder` lists what a run writes.
"""

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
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
from deep.processes import choose_device, processes, rank, wait_for_first, world_size
from deep.recipes import Recipe, as_flags, recipe_settings
from deep.resume import Checkpoints
from deep.run_folder import (
    CHECKPOINTS,
    LOG,
    RESULT,
    STOPPING,
    WEIGHTS,
    begin,
    best,
    locked,
    read_lines,
    read_object,
)
from deep.watch import Watch
from theory.command import parse_flags, run_command
from theory.errors import InputError
from theory.losses import as_targets
from theory.network import count_logits
from theory.record import command_line, environment, recorded, write_json

PROG = "python -m deep.train"


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """Train a network by ERM, Mixup, Manifold Mixup or a form of MixupE."""

    recipe: str | None = None
    """Settings by name or from a .toml file; other flags override them"""
    data_dir: Path | None = None
    """Folder that holds the published files; without it they are downloaded and verified"""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one"""
    out: Path | None = None
    """The run's folder; runs/train/… if not given"""
    resume: bool = False
    """Go on from the last checkpoint in the run's folder (from the start if there is none)"""
    force: bool = False
    """Resume although the settings have changed"""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints; 0 for none but those on a signal"""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, instead of minutes"""
    keep: int = 3
    """How many checkpoints are kept"""
    debug: bool = False
    """Show the traceback of an error"""

    @property
    def folder(self) -> Path:
        """Where the run goes: `out`, or a name made of what distinguishes runs."""
        name = f"{Path(self.model).stem}-{self.data}-{self.objective}-seed{self.seed}"
        return self.out or Path("runs") / "train" / name

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as recipe.json holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        values = {"recipe": self.recipe, **values, "data_dir": self.data_dir}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def check(self) -> None:
        """Raises InputError if a number is out of range."""
        super().check()
        if self.epochs == 0:
            raise InputError("epochs is 0: there is nothing to train")
        least = {"checkpoint_minutes": 0, "checkpoint_steps": 1, "keep": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < math.inf:
                raise InputError(f"{name} is {value}: it must be at least {bound} and finite")
        if self.force and not self.resume:
            raise InputError("--force is for --resume: add it, or leave --force out")


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
            return begin(config.folder, config.settings(), resume=config.resume, force=config.force)

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
    if first:
        watch.open()

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


def run(config: Config) -> int:
    """Trains, prints and saves; the exit code."""
    with processes(choose_device(config.device)):
        try:
            train(config, on_epoch=_print_epoch)
        except Stopped as stopped:
            if rank() == 0:
                _warn(f"stopped: go on with the same command and --resume ({config.folder})")
            return stopped.code
        if rank() == 0:
            print(summary(config.folder))
    return 0


def _print_epoch(line: dict[str, Any]) -> None:
    def shown(part: str) -> str:
        error, loss = line[f"{part}_error"], line[f"{part}_loss"]
        return "" if error is None else f", {part} {loss:.3f} ({error:.1%} wrong)"

    parts = "".join(map(shown, ("train", "validation", "test")))
    tqdm.write(f"epoch {line['epoch']:<6.4g} objective {line['loss']:.3f}{parts}", file=sys.stdout)
    sys.stdout.flush()  # a log file shall show it now


def summary(folder: Path) -> str:
    """What the result of a run says, in a few lines."""
    result = read_object(folder / RESULT)
    rows = {
        "last epoch": "last",
        "best on validation": "best_on_validation",
        "best on test (chosen on the test set)": "best_on_test",
    }
    lines = [
        f"{name:<38} epoch {at['epoch']:<6.4g} test error {at['test_error']:.2%}, test loss "
        f"{at['test_loss']:.3f}"
        for name, key in rows.items()
        if (at := result[key]) is not None
    ]
    return "\n".join([*lines, f"Written to {folder}"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return run_command(Config, run, prog=PROG, argv=argv, default=lambda: _from_recipe(argv))


def _from_recipe(argv: Sequence[str]) -> Config | None:
    """The configuration that the named recipe gives, for the other flags to override."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--recipe", "--model", "--width"):
        finder.add_argument(flag, nargs="?")
    given = finder.parse_known_args(argv)[0]
    if given.recipe is None:
        return None
    config = config_of_recipe(given.recipe)
    if given.width is None and given.model not in (None, config.model):
        config = replace(config, width=None)  # the recipe's is that of the recipe's network
    return config


def config_of_recipe(name: str) -> Config:
    """The flags that a recipe sets, the others at their defaults.

    Raises:
        InputError: As `deep.recipes.recipe_settings`, or if a value does not fit its flag.
    """
    settings = recipe_settings(name)
    try:
        flags = as_flags(settings)
        return parse_flags(Config, ["--recipe", name, *flags], prog=PROG)
    except InputError as error:
        raise InputError(f"recipe {name}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
