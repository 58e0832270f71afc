"""Command: train a network by any objective, watched while it trains, and resumed exactly.

`python -m deep.train --recipe quick-digits --objective mixup` needs nothing else. Several
processes: `torchrun --nproc-per-node 2 -m deep.train …`, by gloo on CPUs and NCCL on GPUs.

A run's folder holds recipe.json (every setting), log.jsonl (a line an epoch), checks.jsonl (a line
a check of q̂ ≈ q), weights.safetensors and result.json. With --resume a run that was stopped in any
way goes on from its last checkpoint, and the two logs and the final weights are bit for bit those
of the uninterrupted run (same machine, same numbers of threads and processes).
"""

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from deep.augment import crop_and_flip
from deep.checkpoint import load_weights, save_weights
from deep.data.images import ImageData, in_proportion, load_images
from deep.evaluate import evaluate
from deep.loop import Step, Training
from deep.models import resolve_model
from deep.objective import build_objective
from deep.processes import choose_device, processes, rank, world_size
from deep.recipes import Recipe, as_flags, recipe_settings
from deep.resume import Checkpoints
from theory.command import parse_flags, run_command
from theory.errors import InputError
from theory.losses import as_targets
from theory.network import count_logits
from theory.probe import measure_probe
from theory.record import check_writable, command_line, environment, json_line, write_json

PROG = "python -m deep.train"
RECIPE, LOG, CHECKS, RESULT, WEIGHTS = (
    "recipe.json", "log.jsonl", "checks.jsonl", "result.json", "weights.safetensors",
)  # fmt: skip
# What a resumed run cannot change even with --force: the saved state would not fit.
_FIXED = ("model", "width", "data", "optimizer")


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


class Stopped(Exception):
    """A signal ended the run after a checkpoint.

    Attributes:
        code: Exit code of the process: 128 + the signal's number.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by signal {code - 128}")
        self.code = code


def train(config: Config, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Runs, or goes on with, the training that a configuration asks for.

    Args:
        config: The flags.
        on_epoch: Called with each new line of the log.

    Returns:
        The run's folder, with result.json in it.

    Raises:
        InputError: If a flag, file, network or data set cannot be used, the loss becomes NaN or
            infinite, or a file cannot be written. Checkpoints stay as they are.
        Stopped: On SIGTERM or SIGINT, after a checkpoint.
    """
    _check(config)
    folder = run_folder(config)
    if _begun(config, folder):
        return folder
    device = choose_device(config.device)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    torch.manual_seed(config.seed)
    data = load_images(config.data, config.data_dir)
    held_out, kept = in_proportion(data.y_train, config.validation, seed=0)
    x, labels = data.x_train[kept], data.y_train[kept]
    model = _network(config, data, device)
    mean = x.mean(0).to(device)
    targets = as_targets(labels, count_logits(model, x[:2].to(device)), config.head)
    objective = build_objective(
        config.objective, model, head=config.head, alpha=config.alpha, beta=config.beta,
        eta=config.eta, tau=config.tau, lam=config.lam, clean_statistics=config.clean_statistics,
        loss=config.loss, mean=mean,
        generator=torch.Generator().manual_seed(config.seed),
    )  # fmt: skip
    black = -torch.tensor(data.mean, device=device) / torch.tensor(data.std, device=device)
    augmented = config.crop_padding > 0 or config.flip
    training = Training(
        objective, x, targets, config, generator=torch.Generator().manual_seed(config.seed),
        augment=partial(
            crop_and_flip, seed=config.seed, padding=config.crop_padding, flip=config.flip,
            fill=black,
        ) if augmented else None,
        autocast=config.precision == "bfloat16",
    )  # fmt: skip
    evaluated = {
        "train": (x[: config.log_samples], labels[: config.log_samples]),
        "validation": (data.x_train[held_out], data.y_train[held_out]),
        "test": (data.x_test, data.y_test),
    }
    probed, _ = in_proportion(labels, config.check_samples, config.seed)
    probe = x[probed].to(device), targets[probed].to(device)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep)
    so_far = _Sums()
    if config.resume:
        state = checkpoints.load(model, warn=lambda line: print(line, file=sys.stderr))
        if state is not None:
            training.load_state_dict(state["training"])
            so_far = _Sums(**state["sums"])
    if rank() > 0:
        config = replace(config, check_every=0.0)
    _truncate(folder / LOG, so_far.log_bytes)
    _truncate(folder / CHECKS, so_far.checks_bytes)

    def check(lr: float) -> None:
        where = {"epoch": round(training.epoch, 6), "step": training.index, "lr": lr}
        measured = measure_probe(
            model, *probe, mean, head=config.head, gradients=config.check_gradients,
            seed=config.seed,
        )  # fmt: skip
        so_far.checks_bytes = _append(folder / CHECKS, {**where, **measured})

    def log(step: Step) -> None:
        if rank() > 0:
            return
        line: dict[str, Any] = {
            "epoch": round(step.epoch, 6), "step": step.index + 1, "lr": step.lr,
            "loss": so_far.loss / so_far.steps, "mixed_accuracy": so_far.accuracy / so_far.steps,
        }  # fmt: skip
        for name, (inputs, truth) in evaluated.items():
            found = evaluate(model, inputs, truth, head=config.head) if len(truth) else None
            line[f"{name}_loss"] = None if found is None else found.loss
            line[f"{name}_error"] = None if found is None else found.error
        so_far.log_bytes = _append(folder / LOG, line)
        if on_epoch:
            on_epoch(line)

    saved = time.monotonic()  # where both clocks, of checkpoints and of the run, started last

    def save() -> None:
        nonlocal saved
        now = time.monotonic()
        so_far.seconds, saved = so_far.seconds + now - saved, now
        if rank() == 0:
            state = {"training": training.state_dict(), "sums": asdict(so_far)}
            checkpoints.save(training.index, model, state)

    with _signals(training) as received, _bar(config, training) as bar:
        if training.index == 0 and config.check_every > 0:
            check(config.learning_rate(0, training.steps_per_epoch))
        for step in training:
            so_far.add(step)
            last = step.index + 1 == step.total
            if config.check_every > 0 and (last or _passed(step, training, config.check_every)):
                check(step.lr)
            if last or (step.index + 1) % training.steps_per_epoch == 0:
                log(step)
                so_far.restart()
            if step.stopping and not last:
                save()
                raise Stopped(128 + (received[0] if received else signal.SIGTERM))
            if not last and _is_due(config, step, time.monotonic() - saved):
                save()
            bar.update(config.batch_size)
    so_far.seconds += time.monotonic() - saved
    if rank() == 0:
        save_weights(model, folder / WEIGHTS)
        write_json(folder / RESULT, _result(config, folder, data, training, so_far))
        checkpoints.remove()
    return folder


@dataclass
class _Sums:
    """What of a run's output a checkpoint must know: sums of the begun epoch, lengths of files."""

    loss: float = 0.0
    accuracy: float = 0.0
    steps: int = 0
    log_bytes: int = 0
    checks_bytes: int = 0
    seconds: float = 0.0

    def add(self, step: Step) -> None:
        self.loss += step.loss
        self.accuracy += step.accuracy
        self.steps += 1

    def restart(self) -> None:
        self.loss = self.accuracy = 0.0
        self.steps = 0


def _check(config: Config) -> None:
    config.check()
    if config.epochs == 0:
        raise InputError("epochs is 0: there is nothing to train")
    least = {"checkpoint_minutes": 0, "checkpoint_steps": 1, "keep": 1}
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not bound <= value < math.inf:
            raise InputError(f"{name} is {value}: it must be at least {bound} and finite")
    if config.force and not config.resume:
        raise InputError("--force is for --resume: add it, or leave --force out")


def run_folder(config: Config) -> Path:
    """Where the run goes: `--out`, or a name made of what distinguishes runs."""
    if config.out is not None:
        return config.out
    name = f"{Path(config.model).stem}-{config.data}-{config.objective}-seed{config.seed}"
    return Path("runs") / "train" / name


def resolved(config: Config) -> dict[str, Any]:
    """The recipe with every override, as recipe.json holds it."""
    settings = {field.name: getattr(config, field.name) for field in fields(Recipe)}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    return {"recipe": config.recipe, **settings, "data_dir": str(config.data_dir or "") or None}


def _begun(config: Config, folder: Path) -> bool:
    """Prepares the folder; whether the run in it has already ended.

    Raises:
        InputError: If the folder holds a run and --resume was not given, or another run.
    """
    path, settings = folder / RECIPE, json.loads(json.dumps(resolved(config)))
    if not path.exists():
        check_writable(folder)
        if rank() == 0:
            write_json(path, settings)
        return False
    if not config.resume:
        raise InputError(f"{folder} holds a run: add --resume to go on, or name another --out")
    old = _read_json(path)
    ignored = {"recipe", "data_dir"}  # names, not settings
    changed = {
        key: f"{key} was {old.get(key)}, is {value}"
        for key, value in settings.items()
        if key not in ignored and old.get(key) != value
    }
    fixed = [text for key, text in changed.items() if key in _FIXED]
    if fixed:
        raise InputError(f"the run in {folder} cannot go on ({'; '.join(fixed)}): start another")
    if changed and (folder / RESULT).exists():
        raise InputError(f"the run in {folder} has ended: name another --out for new settings")
    if changed and not config.force:
        raise InputError(
            f"the settings of the run in {folder} have changed ({'; '.join(changed.values())}): "
            "restore them, or add --force to go on with the new ones"
        )
    if changed and rank() == 0:
        write_json(path, settings)
    return (folder / RESULT).exists()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): start another run") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings: start another run")
    return content


def _network(config: Config, data: ImageData, device: torch.device) -> nn.Module:
    _, channels, height, width = data.x_train.shape
    model = resolve_model(
        config.model, num_classes=data.num_classes, in_channels=channels,
        image_size=(height, width), width=config.width,
    ).to(device)  # fmt: skip
    if config.checkpoint is not None:
        load_weights(model, config.checkpoint)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world_size() > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.compile:
        model.compile()
    return model


def _append(path: Path, line: dict[str, Any]) -> int:
    """Adds a line to a log, at once readable by others; the log's new length in bytes.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line(line))
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}): free space there and resume"
        ) from error


def _truncate(path: Path, size: int) -> None:
    """Cuts a log back to where the checkpoint knew it, so that nothing stands in it twice."""
    if rank() > 0:
        return
    try:
        with path.open("ab") as file:
            if file.tell() < size:
                raise InputError(f"{path} has lost lines since the checkpoint: start another run")
            file.truncate(size)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _passed(step: Step, training: Training, every: float) -> bool:
    """Whether the step completed another `every` epochs."""
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
    """Turns SIGTERM and SIGINT into a stop after the step; a second one has its usual effect.

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
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(config: Config, training: Training) -> Iterator[tqdm]:
    """A bar over the optimiser steps with throughput and time left, silent without a terminal."""
    with tqdm(
        total=training.total * config.batch_size, initial=training.index * config.batch_size,
        disable=True if rank() > 0 else None, unit="example", unit_scale=True, smoothing=0.05,
        desc=f"{config.objective} {Path(config.model).stem}",
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left, "
        "{rate_fmt}",
    ) as bar:  # fmt: skip
        yield bar


def _result(
    config: Config,
    folder: Path,
    data: ImageData,
    training: Training,
    so_far: _Sums,
) -> dict[str, Any]:
    """The content of result.json."""
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]

    def best(part: str) -> dict[str, Any] | None:
        known = [line for line in lines if line[f"{part}_error"] is not None]
        return min(known, key=lambda line: line[f"{part}_error"], default=None)

    return {
        "command": command_line("deep.train"),
        "recipe": resolved(config),
        "last": lines[-1],
        "best_on_validation": best("validation"),
        # Chosen by the very numbers that it reports: what selection could give at best, no result.
        "best_on_test": best("test"),
        "parameters": sum(p.numel() for p in training.objective.parameters()),
        "source": data.source,
        "examples": {"train": len(training.x), "validation": config.validation,
                     "test": len(data.x_test)},
        "device": str(training.device),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "seconds": round(so_far.seconds, 1),
        "steps_per_second": training.total / so_far.seconds,
        "environment": environment(),
    }  # fmt: skip


def run(config: Config) -> int:
    """Trains, prints and saves; the exit code."""
    with processes(choose_device(config.device)):
        try:
            folder = train(config, on_epoch=_print_epoch)
        except Stopped as stopped:
            if rank() == 0:
                print(f"stopped: go on with --resume --out {run_folder(config)}", file=sys.stderr)
            return stopped.code
        if rank() == 0:
            print(summary(folder))
    return 0


def _print_epoch(line: dict[str, Any]) -> None:
    def shown(part: str) -> str:
        error, loss = line[f"{part}_error"], line[f"{part}_loss"]
        return "" if error is None else f", {part} {loss:.3f} ({error:.1%} wrong)"

    parts = "".join(map(shown, ("train", "validation", "test")))
    tqdm.write(f"epoch {line['epoch']:<6.4g} objective {line['loss']:.3f}{parts}", file=sys.stdout)
    sys.stdout.flush()  # a log file shall show it now


def summary(folder: Path) -> str:
    """What result.json says, in a few lines."""
    result = _read_json(folder / RESULT)
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
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--recipe", nargs="?")
    name = finder.parse_known_args(argv)[0].recipe
    if name is None:
        return None
    flags = as_flags(recipe_settings(name))
    try:
        return parse_flags(Config, ["--recipe", name, *flags], prog=PROG)
    except InputError as error:
        raise InputError(f"recipe {name}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
