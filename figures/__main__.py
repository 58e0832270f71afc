"""Command: `python -m figures RECORD` draws the figures of what was recorded."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from figures import check_approx, deformations, losses, tables, training
from figures.runs import read_runs
from theory.command import run_command
from theory.record import recorded
from theory.report import read_reports

PROG = "python -m figures"


@dataclass(frozen=True)
class Config:
    """Draw the figures of a record: a check, training runs, robustness, or a table."""

    record: tyro.conf.Positional[Path]
    """report.json of theory.check_approx or `Report.to_json`; a folder of deep.train;
    runs.jsonl of deep.campaign, robustness.json of deep.robustness, record.jsonl of deep.table;
    or such a folder"""
    out: Path | None = None
    """Folder for the figures; the record's own if not given"""
    overview: bool = False
    """Of a check: draw only the overview"""
    debug: bool = False
    """Show the traceback of an error"""


def run(config: Config) -> int:
    """Reads, draws, names the files."""
    path = config.record
    for name in ("robustness.json", tables.RECORD):
        if (path / name).exists():
            path /= name
    folder = config.out or (path if path.is_dir() else path.parent)
    with recorded(path):
        paths = _drawn(path, folder, config.overview)
    for drawn in paths:
        print(drawn)
    return 0


def _drawn(path: Path, folder: Path, overview: bool) -> list[Path]:
    """Draws whatever kind of record it is."""
    if path.name == tables.RECORD:
        return tables.save(folder, tables.read(path))
    if path.is_dir() or path.suffix == ".jsonl":
        paths = losses.save(folder, losses.read(path))
        if any(run["checks"] for run in read_runs(path)):
            paths += training.save(folder, training.read(path))
        return paths
    if path.name == "robustness.json":
        return deformations.save(folder, deformations.read(path))
    return check_approx.save(folder, read_reports(path), ["overview"] if overview else None)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
