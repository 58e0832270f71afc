"""What `python -m deep.train` and a campaign of it recorded, as the figures read it."""

import math
from pathlib import Path
from typing import Any

from deep.run_folder import CHECKS, LOG, RECIPE, RESULT, labels, read_lines, read_object
from theory.errors import InputError
from theory.record import recorded

RECORD = "runs.jsonl"


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Runs from a run's folder, a folder of such folders, a campaign's folder or its record.

    Args:
        path: A folder with recipe.json (one run, which may still be going on), with runs.jsonl (a
            campaign's record) or with runs' folders in it; or a file of such lines as runs.jsonl.

    Returns:
        One dict a run: `label` (its objective, and what else is not the same in all runs), `recipe`
        (its settings), `result` (None while it runs), `log` (a dict an
        epoch) and `checks` (a dict a check of q̂ ≈ q, see `theory.probe.measure_probe`). What JSON
        cannot hold is as it was written, see `number`.

    Raises:
        InputError: If there is no run, or a file cannot be read.
    """
    runs = _runs(path)
    with recorded(path):
        names = labels([run["recipe"] for run in runs])
    return [{"label": name, **run} for name, run in zip(names, runs, strict=True)]


def number(value: Any) -> float:
    """A number of a record, where null stands for NaN and text for an infinity."""
    return math.nan if value is None else float(value)


def name_of(run: dict[str, Any]) -> str:
    """What a figure calls a run's network and data."""
    recipe = run["recipe"]
    width = "" if recipe.get("width") is None else f", width {recipe['width']}"
    return f"{Path(recipe['model']).name}{width} on {recipe['data']}"


def _runs(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        if (path / RECIPE).exists():
            return [_run(path)]
        if not (path / RECORD).exists():
            runs = [_run(found.parent) for found in sorted(path.glob(f"*/{RECIPE}"))]
            if not runs:
                raise InputError(f"{path} holds no run: name a folder that deep.train wrote to")
            return runs
        path = path / RECORD
    runs = read_lines(path)
    if not runs or not all({"recipe", "log", "checks"} <= run.keys() for run in runs):
        raise InputError(f"{path} is no record of runs: name a campaign's {RECORD}")
    return runs


def _run(folder: Path) -> dict[str, Any]:
    result, log, checks = (folder / name for name in (RESULT, LOG, CHECKS))
    return {
        "recipe": read_object(folder / RECIPE),
        "result": read_object(result) if result.exists() else None,
        "log": read_lines(log) if log.exists() else [],
        "checks": read_lines(checks) if checks.exists() else [],
    }
