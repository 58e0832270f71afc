"""Command: `python -m figures report.json` draws the figures of a recorded check anew."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from figures.check_approx import save
from theory.command import run_command
from theory.report import read_reports

PROG = "python -m figures"


@dataclass(frozen=True)
class Config:
    """Draw the figures of a check from its record."""

    report: tyro.conf.Positional[Path]
    """A report.json that `python -m theory.check_approx` or `Report.to_json` wrote"""
    out: Path | None = None
    """Folder for the figures; the record's own if not given"""
    overview: bool = False
    """Draw only the overview"""
    debug: bool = False
    """Show the traceback of an error"""


def run(config: Config) -> int:
    """Reads, draws, names the files."""
    names = ["overview"] if config.overview else None
    for path in save(config.out or config.report.parent, read_reports(config.report), names):
        print(path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
