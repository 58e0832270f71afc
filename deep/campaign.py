"""Command: many training runs, objectives × seeds, sized to a time budget and resumed anywhere.

`python -m deep.campaign --recipe small-cifar10 --budget-minutes 240` measures how long an epoch of
each objective takes, gives all of them the same number of epochs, the most that fit, and trains one
run after another (`--jobs` at a time). The plan is made once: called again, the campaign goes on
where it was, also after a kill, unless the recipe has changed. Results gather in runs.jsonl, one
line a finished run.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deep.data.load import load_examples
from deep.objective import Objective
from deep.recipes import as_flags, check_seed
from deep.run_folder import read_lines, read_object
from deep.runner import RUNS, Cell, carry_out, collected_signals, shared_threads
from deep.train import config_of_recipe
from deep.training import prepare
from theory.command import run_command
from theory.errors import InputError, check_positive
from theory.record import (
    check_writable,
    command_line,
    environment,
    recorded,
    write_json,
)
from theory.report import align

PROG = "python -m deep.campaign"
PLAN = "campaign.json"
TIMED_STEPS = 12
# Settings that the plan names by themselves, that differ from run to run, or of the machine.
_NOT_THE_RECIPES = ("recipe", "objective", "seed", "epochs", "data_dir")
TALK: tuple[Objective, ...] = (
    "erm", "mixup", "manifold_mixup", "mixupe-paper", "mixupe-official-v3", "mixupe-exact",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train objectives × seeds by one recipe, all for the same number of epochs."""

    recipe: str = "small-cifar10"
    """Settings of every run, by name or from a .toml file"""
    objectives: tuple[Objective, ...] = TALK
    """What is compared"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each objective for each"""
    budget_minutes: float = 240.0
    """Time for all of it, from which the number of epochs follows"""
    epochs: int | None = None
    """That number, instead of a budget"""
    minutes: float | None = None
    """Stop this call after so many minutes, checkpoints written; call again to go on"""
    jobs: int | None = None
    """Runs trained at a time; those of the plan if not given, 1 in a new one"""
    threads: int | None = None
    """Threads of each, in all calls the same; the processors shared among the plan's jobs if not
    given"""
    data_dir: Path | None = None
    """Folder that holds the published files; without it they are downloaded and verified"""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one"""
    out: Path | None = None
    """The campaign's folder; runs/campaign/<recipe> if not given"""
    debug: bool = False
    """Show the traceback of an error"""

    @property
    def folder(self) -> Path:
        """Where the campaign goes."""
        return self.out or Path("runs") / "campaign" / Path(self.recipe).stem


def plan(config: Config) -> dict[str, Any]:
    """What the campaign will train: made once, then read from its folder.

    Returns:
        `recipe`, `objectives`, `seeds`, `settings` (the recipe's, which plans of older versions
        lack), `epochs`, `jobs`, `threads`, and of the measurement that the epochs follow from,
        where there was one, `budget_minutes` and `seconds`: for each objective, those of an epoch
        with its evaluation and checks.

    Raises:
        InputError: If a flag is out of range, the folder holds another campaign, or not even one
            epoch fits the budget.
    """
    _check(config)
    base = config_of_recipe(config.recipe)
    base.check()
    settings = {k: v for k, v in base.settings().items() if k not in _NOT_THE_RECIPES}
    asked = {"recipe": config.recipe, "objectives": list(config.objectives),
             "seeds": list(config.seeds)}  # fmt: skip
    path = config.folder / PLAN
    if path.exists():
        old = read_object(path)
        changed = [f"{k} was {old.get(k)}, is {v}" for k, v in asked.items() if old.get(k) != v]
        for name in ("epochs", "threads"):  # threads: rounding depends on their number
            value = getattr(config, name)
            if value is not None and value != old.get(name):
                changed.append(f"{name} were {old.get(name)}, are {value}")
        planned = old.get("settings", {})
        if isinstance(planned, dict):
            now = json.loads(json.dumps(settings))
            differ = [key for key in planned if planned[key] != now.get(key)]
            changed += [f"{key} was {planned[key]}, is {now.get(key)}" for key in differ]
        if changed:
            raise InputError(
                f"{config.folder} holds another campaign ({'; '.join(changed)}): name another --out"
            )
        numbers = [old.get(name) for name in ("epochs", "jobs", "threads")]
        times = old.get("seconds", {})
        if not all(type(number) is int and number > 0 for number in numbers) or not (
            isinstance(planned, dict)
            and isinstance(times, dict)
            and all(type(s) in (int, float) for s in times.values())
        ):
            raise InputError(f"{path} is no whole plan: restore it, or name another --out")
        return old
    check_writable(config.folder)
    jobs = config.jobs or 1
    threads = shared_threads(jobs, config.threads)
    made: dict[str, Any] = {**asked, "settings": settings, "jobs": jobs, "threads": threads}
    if config.epochs is not None:
        made["epochs"] = config.epochs
    else:
        seconds = _seconds_per_epoch(config, threads)
        whole = len(config.seeds) * sum(seconds.values()) / jobs
        epochs = math.floor(config.budget_minutes * 60 / whole)
        if epochs < 1:
            raise InputError(
                f"one epoch of all {len(config.seeds) * len(seconds)} runs takes about "
                f"{whole / 60:.0f} minutes, the budget is {config.budget_minutes:g}: raise it, or "
                "ask for fewer objectives, seeds or a smaller width"
            )
        made |= {"epochs": epochs, "budget_minutes": config.budget_minutes, "seconds": seconds}
    made |= {"command": command_line("deep.campaign"), "environment": environment()}
    write_json(path, made)
    return made


def _check(config: Config) -> None:
    for name in ("objectives", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name} is {values}: name at least one, and each once")
    for seed in config.seeds:
        check_seed(seed)
    for name in ("jobs", "threads", "epochs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}: it must be at least 1")
    for name in ("budget_minutes", "minutes"):
        value = getattr(config, name)
        if value is not None:
            check_positive(f"--{name.replace('_', '-')}", value)


def _seconds_per_epoch(config: Config, threads: int) -> dict[str, float]:
    """Seconds of one epoch of each objective with what happens in it, measured on the data."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        base = replace(
            config_of_recipe(config.recipe), seed=config.seeds[0], data_dir=config.data_dir,
            device=config.device, out=config.folder / "timing",
        )  # fmt: skip
        data = load_examples(base.data, base.data_dir)
        found: dict[str, float] = {}
        for objective in config.objectives:
            torch.manual_seed(0)
            _, training, watch = prepare(replace(base, objective=objective, epochs=1000), data)
            steps = iter(training)
            for _ in range(TIMED_STEPS // 4):
                next(steps)
            start = time.monotonic()
            for _ in range(TIMED_STEPS):
                step = next(steps)
                watch.add(step)
            per_step = (time.monotonic() - start) / TIMED_STEPS
            aside = watch.seconds_aside(step)
            found[objective] = round(per_step * training.steps_per_epoch + aside, 2)
        return found
    finally:
        torch.set_num_threads(before)


def cells(config: Config, planned: Mapping[str, Any]) -> list[Cell]:
    """The runs of a plan, all objectives of one seed first."""
    shared: dict[str, Any] = {
        "recipe": config.recipe, "epochs": planned["epochs"], "device": config.device,
    }  # fmt: skip
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    return [
        Cell(
            f"{objective}-seed{seed}",
            tuple(as_flags({**shared, "objective": objective, "seed": seed})),
        )
        for seed in planned["seeds"]
        for objective in planned["objectives"]
    ]


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the runs came to, a row an objective: mean ± standard deviation over its seeds.

    Args:
        runs: Lines of runs.jsonl.
    """
    rows = [[
        "objective", "runs", "test error [%]", "at best validation", "at best test*", "test loss",
        "train loss", "error of q̂", "corr(q, q̂)", "cos ∇",
    ]]  # fmt: skip
    for objective in dict.fromkeys(run["recipe"]["objective"] for run in runs):
        own = [run for run in runs if run["recipe"]["objective"] == objective]
        results = [run["result"] for run in own]
        checks = [run["checks"][-1] for run in own if run["checks"]]
        alignments = [check["alignment"] for check in checks if check["alignment"]]
        rows.append([
            objective,
            str(len(own)),
            _spread([100 * r["last"]["test_error"] for r in results], 2),
            _spread([100 * r["best_on_validation"]["test_error"]
                     for r in results if r["best_on_validation"]], 2),
            _spread([100 * r["best_on_test"]["test_error"] for r in results], 2),
            _spread([r["last"]["test_loss"] for r in results], 3),
            _spread([r["last"]["train_loss"] for r in results], 3),
            _spread([check["relative_error"]["value"] for check in checks], 2),
            _spread([check["pearson"]["value"] for check in checks], 2),
            _spread([alignment["cosine_abs_q"] for alignment in alignments], 2),
        ])  # fmt: skip
    notes = [
        "mean ± standard deviation over seeds; last epoch where nothing else is said; losses in "
        "nats, clean examples",
        "* chosen on the test set: what selection could give at best, no result",
        "q̂ on the probe at the end: ‖q − q̂‖ / ‖q‖, Pearson's r, cos(∇mean|q|, ∇mean|q̂|)",
    ]
    return "\n".join([*align(rows), *notes])


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def run(config: Config) -> int:
    """Plans, trains, prints; the exit code.

    0 if all is done or --minutes are up, 1 if a run failed, 128 + its number after a signal.
    """
    planned = plan(config)
    count = len(planned["seeds"]) * len(planned["objectives"])
    of = f"{count} runs, epochs each: {planned['epochs']}"
    print(f"{of}, in {config.folder}", flush=True)
    for objective, seconds in planned.get("seconds", {}).items():
        print(f"  {objective:<20} {seconds:8.1f} s an epoch, {planned['threads']} thread(s)")
    with collected_signals() as received:
        state = carry_out(
            config.folder, cells(config, planned), jobs=config.jobs or planned["jobs"],
            threads=planned["threads"], minutes=config.minutes, received=received,
        )  # fmt: skip
    finished = read_lines(config.folder / RUNS)
    if finished:
        with recorded(config.folder / RUNS):
            print(f"\n{table(finished)}\n")
    done = sum(outcome == "done" for outcome in state.values())
    print(f"{done} of {count} runs are done: {config.folder / RUNS}")
    failed = [name for name, outcome in state.items() if outcome.startswith("failed")]
    for name in failed:
        print(f"{name} {state[name]}", file=sys.stderr)
    if failed:
        return 1
    if done < count:
        print("call again to go on")
    return 128 + received[0] if received else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
