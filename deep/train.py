"""Command: train a network by any objective, watched while it trains, and resumed exactly.

`python -m deep.train --recipe quick-digits --objective mixup` needs nothing else. Several
processes: `torchrun --nproc-per-node 2 -m deep.train …`, by gloo on CPUs and NCCL on GPUs.

With --resume a run that was stopped in any way goes on from its last checkpoint, and its logs and
final weights are bit for bit those of the uninterrupted run (same machine, same numbers of threads
and processes). `deep.run_folder` lists what a run writes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deep.processes import choose_device, processes, rank
from deep.recipes import Config, as_flags, recipe_settings
from deep.run_folder import RESULT, read_object
from theory.command import parse_flags, run_command
from theory.errors import InputError

PROG = "python -m deep.train"


def run(config: Config) -> int:
    """Trains, prints and saves; the exit code."""
    from deep.training import Stopped, train  # loads what --help does not need

    with processes(choose_device(config.device)):
        try:
            train(config, on_epoch=_print_epoch)
        except Stopped as stopped:
            if rank() == 0:
                told = f"stopped: go on with the same command and --resume ({config.folder})"
                print(told, file=sys.stderr)
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
