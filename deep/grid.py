"""Command: a sweep of training runs, rows × grid values × seeds, here or on a SLURM cluster.

`python -m deep.grid run SWEEP.toml` trains what is not finished, `… status SWEEP.toml` says where
each cell stands, `… collect SWEEP.toml` gathers the finished ones in runs.jsonl. A sweep:

    seeds = [0, 1, 2]
    [grid]                      # optional: every combination of these, for every row
    alpha = [0.5, 1.0]
    [rows.mixup]                # keys are those of a recipe, see deep/recipes.toml
    recipe = "quick-digits"
    objective = "mixup"

A cell is known by the hash of its resolved settings, which ends its folder's name. So a sweep may
grow or be edited: what is finished stays, also if its row is renamed (by its old name then), what
is new is trained; and the folder may move to another machine and go on there.
"""

import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from deep.recipes import Config as TrainConfig
from deep.recipes import Recipe, as_flags, read_toml
from deep.run_folder import CHECKPOINTS, RESULT, is_locked, read_object
from deep.runner import (
    FAILURE,
    RUNS,
    Cell,
    carry_out,
    collected_signals,
    gather,
    gathered,
    shared_threads,
)
from deep.slurm import Slurm, queued, submit
from deep.train import config_of_recipe
from theory.command import parse_flags, run_command
from theory.errors import InputError, check_positive, unknown
from theory.record import check_writable, command_line, environment, write_json
from theory.report import align

PROG = "python -m deep.grid"
MANIFEST = "grid.json"
_MOST_CELLS = 10_000
_LONGEST_NAME = 200  # bytes of a folder's name before its hash; file systems take 255 in all


@dataclass(frozen=True, kw_only=True)
class _Grid:
    sweep: tyro.conf.Positional[Path]
    """The sweep, a .toml file"""
    out: Path | None = None
    """The grid's folder; runs/grid/<sweep> if not given"""
    debug: bool = False
    """Show the traceback of an error"""

    @property
    def folder(self) -> Path:
        """Where the grid goes."""
        return self.out or Path("runs") / "grid" / self.sweep.stem


@dataclass(frozen=True, kw_only=True)
class Run(_Grid, Slurm):
    """Train the cells of a sweep that are not finished."""

    data_dir: Path | None = None
    """Folder that holds the published files; without it they are downloaded and verified"""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one"""
    jobs: int = 1
    """Cells trained at a time on this machine"""
    threads: int | None = None
    """Threads of each; the processors shared among the jobs if not given"""
    minutes: float | None = None
    """Stop after so many minutes, checkpoints written; call again to go on"""


@dataclass(frozen=True, kw_only=True)
class Status(_Grid):
    """Say where each cell stands: done, running, queued, stopped, waiting, or failed and why."""


@dataclass(frozen=True, kw_only=True)
class Collect(_Grid):
    """Gather the finished cells in runs.jsonl, for `python -m figures`."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
)


@dataclass(frozen=True)
class Grid:
    """A sweep of training runs, on this machine or on a SLURM cluster."""

    command: Annotated[Command, tyro.conf.arg(name="")]

    @property
    def debug(self) -> bool:
        """Show the traceback of an error."""
        return self.command.debug


def read_sweep(path: Path) -> dict[Cell, dict[str, Any]]:
    """The cells of a sweep, seed by seed, and the resolved settings of each.

    Raises:
        InputError: If the file cannot be read or is no sweep, a row's recipe or key is unknown, a
            value is out of range, or two cells are the same.
    """
    content = read_toml(path, "sweep")
    seeds, grid, rows = content.pop("seeds", [0]), content.pop("grid", {}), content.pop("rows", {})
    tables = isinstance(grid, dict) and isinstance(rows, dict)
    if content or not tables or not all(isinstance(row, dict) for row in rows.values()):
        extra = f"; it has {', '.join(content)}" if content else ""
        raise InputError(f"sweep {path} holds seeds, [grid] and [rows.NAME] alone{extra}: mend it")
    if not rows or not isinstance(seeds, list) or not seeds:
        raise InputError(f"sweep {path} has no rows or no seeds: name at least one of each")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"sweep {path}: {key} in [grid] is no list of values: make it one")
    if any("seed" in table for table in (grid, *rows.values())):
        raise InputError(f"sweep {path} has a seed among other keys: name it in seeds = […]")
    count = math.prod(map(len, (seeds, rows, *grid.values())))
    if count > _MOST_CELLS:
        raise InputError(f"sweep {path} has {count} cells, more than {_MOST_CELLS}: split it")
    cells: dict[Cell, dict[str, Any]] = {}
    choices = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for seed, (name, row), choice in itertools.product(seeds, rows.items(), choices):
        words = [name, *(f"{key}={value}" for key, value in choice.items()), f"seed{seed}"]
        cell, settings = _cell("-".join(words), {**row, **choice, "seed": seed}, path)
        if settings in cells.values():
            raise InputError(f"sweep {path} asks for {cell.name} twice: drop one")
        cells[cell] = settings
    return cells


def _cell(name: str, values: Mapping[str, Any], path: Path) -> tuple[Cell, dict[str, Any]]:
    """A cell and its settings from what the sweep says of it."""
    values = dict(values)
    recipe = values.pop("recipe", None)
    for key in values:
        if key not in Recipe.__dataclass_fields__:
            fault = unknown("key", key, ("recipe", *Recipe.__dataclass_fields__))
            raise InputError(f"sweep {path}: {name}: {fault}")
    try:
        default = None if recipe is None else config_of_recipe(str(recipe))
        flags = as_flags(values)
        config = parse_flags(TrainConfig, flags, prog="python -m deep.train", default=default)
        config.check()
    except InputError as error:
        raise InputError(f"sweep {path}: {name}: {error}") from error
    settings = config.settings()
    decisive = {k: v for k, v in settings.items() if k not in ("recipe", "data_dir")}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    given = [] if recipe is None else ["--recipe", str(recipe)]
    # Rows' names and values may hold slashes; the folder stays below the grid's all the same.
    name = re.sub(r"[^\w.=+-]", "_", name).encode()[:_LONGEST_NAME].decode(errors="ignore")
    return Cell(f"{name}-{digest[:8]}", (*given, *flags)), decisive


def _named_as_there(
    folder: Path, cells: Mapping[Cell, dict[str, Any]]
) -> dict[Cell, dict[str, Any]]:
    """The cells, those of renamed rows by the names under which the folder has them."""
    finished = [path.parent.name for path in folder.glob(f"*/{RESULT}")]
    there = [*(path.name for path in folder.glob("*/")), *finished, *gathered(folder)]
    asked = {cell.name for cell in cells}
    # Of several of one hash the last counts, which is a finished one if there is any.
    known = {_digest(name): name for name in there if name not in asked}
    found = {}
    for cell, settings in cells.items():
        name = cell.name if cell.name in there else known.get(_digest(cell.name), cell.name)
        found[replace(cell, name=name)] = settings
    return found


def _digest(name: str) -> str:
    return name.rpartition("-")[2]


def states(folder: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Where each cell stands, from its files and SLURM's queue.

    Args:
        folder: The grid's.
        cells: Its cells.

    Returns:
        Name -> "done", "running", "queued", "failed: …", "stopped" (it goes on when the grid is run
        again) or "waiting".

    Raises:
        InputError: If one of the files is damaged.
    """
    waiting, done = queued(folder, cells), gathered(folder)
    found = {}
    for cell in cells:
        own = folder / cell.name
        if cell.name in done or (own / RESULT).exists():
            found[cell.name] = "done"
        elif is_locked(own):
            found[cell.name] = "running"
        elif cell.name in waiting:
            found[cell.name] = "queued"
        elif (own / FAILURE).exists():
            found[cell.name] = str(read_object(own / FAILURE).get("outcome", "failed"))
        else:
            begun = (own / CHECKPOINTS).exists()
            found[cell.name] = "stopped" if begun else "waiting"
    return found


def run(grid: Grid) -> int:
    """Does what was asked; the exit code: 1 if a cell failed, 128 + its number after a signal."""
    config = grid.command
    cells = _named_as_there(config.folder, read_sweep(config.sweep))
    names = [cell.name for cell in cells]
    match config:
        case Run():
            return _run(config, cells)
        case Status():
            found = states(config.folder, list(cells))
            print("\n".join(align([["cell", "state"], *found.items()])))
            done = sum(state == "done" for state in found.values())
            print(f"{done} of {len(found)} cells are done")
            return 1 if any(state.startswith("failed") for state in found.values()) else 0
        case Collect():
            if not config.folder.is_dir():
                raise InputError(f"{config.folder} is no folder: run the grid first")
            finished = gather(config.folder, names)
            print(f"{len(finished)} of {len(names)} cells: {config.folder / RUNS}")
            return 0


def _run(config: Run, cells: Mapping[Cell, dict[str, Any]]) -> int:
    if config.jobs < 1 or (config.threads is not None and config.threads < 1):
        raise InputError("--jobs and --threads must be at least 1")
    if config.minutes is not None:
        check_positive("--minutes", config.minutes)
    check_writable(config.folder)
    write_json(config.folder / MANIFEST, {
        "command": command_line("deep.grid"), "environment": environment(),
        "cells": {cell.name: settings for cell, settings in cells.items()},
    })  # fmt: skip
    more = ["--device", config.device]
    if config.data_dir is not None:
        more += ["--data-dir", str(config.data_dir)]
    asked = [Cell(cell.name, (*cell.flags, *more)) for cell in cells]
    if config.slurm:
        state = states(config.folder, asked)
        due = [c for c in asked if state[c.name] not in ("done", "running", "queued")]
        if due:
            first = submit(config.folder, due, config)
            print(f"{len(due)} cells are in SLURM's queue, from job {first} on")
        print(f"{len(asked) - len(due)} of {len(asked)} cells were done or under way before")
        return 0
    with collected_signals() as received:
        state = carry_out(
            config.folder, asked, jobs=config.jobs,
            threads=shared_threads(config.jobs, config.threads), minutes=config.minutes,
            received=received,
        )  # fmt: skip
    done = sum(outcome == "done" for outcome in state.values())
    print(f"{done} of {len(state)} cells are done: {config.folder / RUNS}")
    if any(outcome.startswith("failed") for outcome in state.values()):
        return 1
    return 128 + received[0] if received else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Grid, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
