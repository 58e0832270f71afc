"""Command: reruns one of the talk's tables on real data and sets it beside what was published.

`python -m deep.table 4` says how many networks are to be trained (with --plan about how long that
takes, and no more), trains them job after job, and writes record.jsonl (a line a finished job:
settings, data with SHA-256, results, versions) and the tables drawn from it: table.md, table.tex,
cells.csv, gains.csv. Called again, it goes on after the last finished job, also after a kill;
several calls may work on different --rows in one folder at the same time.
"""

import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from deep.run_folder import read_lines
from deep.tables.graphs import GraphsConfig
from deep.tables.jobs import Job, TableConfig
from deep.tables.render import rendered
from deep.tables.speech import SpeechConfig
from deep.tables.tabular import TabularConfig
from theory.command import run_command
from theory.errors import InputError, check_positive
from theory.record import (
    check_writable,
    command_line,
    environment,
    json_line,
    recorded,
    write_atomically,
)

PROG = "python -m deep.table"
RECORD = "record.jsonl"
_OWN = {"method", "seed", "fold"}  # settings in which the jobs of one row differ
Command = (
    Annotated[TabularConfig, tyro.conf.subcommand("4")]
    | Annotated[SpeechConfig, tyro.conf.subcommand("5")]
    | Annotated[GraphsConfig, tyro.conf.subcommand("6")]
)


@dataclass(frozen=True)
class Table:
    """Rerun one of the talk's tables, by its number, on real data."""

    command: Annotated[Command, tyro.conf.arg(name="")]

    @property
    def debug(self) -> bool:
        """Show the traceback of an error."""
        return self.command.debug


def read_record(path: Path) -> list[dict[str, Any]]:
    """The finished jobs of a record, each once; [] where there is none yet.

    Raises:
        InputError: If the file cannot be read, or is no such record.
    """
    if not path.exists():
        return []
    jobs = read_lines(path)
    if not all(
        isinstance(line.get("job"), str) and isinstance(line.get("settings", {}), dict)
        for line in jobs
    ):
        raise InputError(f"{path} is no record of a table: name another --out")
    return list(reversed({line["job"]: line for line in reversed(jobs)}.values()))


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line whole, also while other processes add theirs; a torn last line is cut off.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(json_line(line).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}): free space there and call again"
        ) from error


def carry_out(config: TableConfig, jobs: Sequence[Job], path: Path) -> dict[str, str]:
    """Trains jobs one after another, and records each as it ends.

    Args:
        config: The flags.
        jobs: What is to be trained.
        path: The record.

    Returns:
        Name of each job that could not be trained -> why.

    Raises:
        InputError: If the record cannot be written.
    """
    end = math.inf if config.minutes is None else time.monotonic() + 60 * config.minutes
    faults: dict[str, str] = {}
    for job in jobs:
        if time.monotonic() > end:
            print(f"{config.minutes:g} minutes are up: call again to go on")
            break
        start = time.monotonic()
        try:
            _check_source(job, path)
            with _bar(job) as bar:
                outcome = job.run(partial(_advance, bar))
        except InputError as error:
            faults[job.name] = str(error)
            continue
        seconds = time.monotonic() - start
        append(path, {
            "table": config.number, "job": job.name, "row": job.row, "runs": job.runs,
            "resplit": config.resplit,
            "settings": job.settings, **outcome, "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command_line("deep.table"), "environment": environment(),
        })  # fmt: skip
        print(f"{job.name}: {job.runs} networks in {_duration(seconds)}", flush=True)
    return faults


def _check_source(job: Job, path: Path) -> None:
    """Splits are paired by their number, which means the same examples in the same data alone."""
    with recorded(path):
        known = {
            line["data"]["source"]: line["job"]
            for line in read_record(path)
            if line.get("row") == job.row
        }
    if not known:
        return
    here = job.source()
    for source, name in known.items():
        if source != here:
            raise InputError(
                f"{path} holds {name} on other data ({source}, here {here}): name that --data-dir, "
                "or another --out"
            )


def _bar(job: Job) -> tqdm:
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"
    return tqdm(total=1.0, desc=job.name, disable=None, leave=False, bar_format=form)


def _advance(bar: tqdm, part: float) -> None:
    bar.update(part - bar.n)


def waiting(record: Sequence[Mapping[str, Any]], jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs that the record does not hold.

    Raises:
        InputError: If it holds one of them with other settings, or another job of its row with
            settings that keep the two from being compared.
    """
    for job, line in product(jobs, record):
        changed = "; ".join(_changed(job, line))
        if changed:
            raise InputError(
                f"{folder / RECORD} holds {line['job']} with other settings ({changed}): name "
                "another --out"
            )
    finished = {line["job"] for line in record}
    return [job for job in jobs if job.name not in finished]


def _changed(job: Job, line: Mapping[str, Any]) -> list[str]:
    """What keeps a job from being a line of the record, or from being compared with one."""
    settings, old = json.loads(json_line(job.settings)), line.get("settings", {})
    if line["job"] == job.name:
        keys = [key for key in settings if old.get(key) != settings[key]]
    elif line.get("row") == job.row:
        own = {key for key in settings if None in (old.get(key), settings[key])} | _OWN
        keys = [key for key in settings if key not in own and old[key] != settings[key]]
    else:
        keys = []
    return [f"{key} was {old.get(key)}, is {settings[key]}" for key in keys]


def _estimate(jobs: Sequence[Job]) -> None:
    """Prints how long the jobs take, row by row as it is found, and in all."""
    whole = 0.0
    for row, own in groupby(jobs, key=lambda job: job.row):
        members = list(own)
        try:
            seconds = sum(job.seconds() for job in members)
        except InputError as error:
            told = f"cannot run: {error}"
        else:
            whole += seconds
            told = f"about {_duration(seconds)}"
        print(f"  {row:<16} {sum(job.runs for job in members):6} networks  {told}", flush=True)
    print(f"in all about {_duration(whole)} on this machine as it is now")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run(config: TableConfig) -> int:
    """Plans, trains, renders; the exit code: 0, or 1 if a job could not be trained."""
    if config.minutes is not None:
        check_positive("--minutes", config.minutes)
    folder = config.out or Path("runs") / "table" / str(config.number)
    path, jobs = folder / RECORD, config.jobs()
    check_writable(folder)
    left = waiting(read_record(path), jobs, folder)
    print(
        f"Table {config.number}: {len(jobs)} jobs, {len(jobs) - len(left)} of them finished; to "
        f"train: {sum(job.runs for job in left)} networks",
        flush=True,
    )
    if config.plan:
        _estimate(left)
        return 0
    faults = carry_out(config, left, path)
    record = read_record(path)
    if record:
        with recorded(path):
            files = rendered(config.number, record)
        for name, content in files.items():
            write_atomically(folder / name, partial(Path.write_text, data=content))
        print(f"{len(record)} jobs are recorded in {path}, drawn in {folder / 'table.md'}")
    for name, fault in faults.items():
        print(f"{name}: not run: {fault}", file=sys.stderr)
    return 1 if faults else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Table, lambda table: run(table.command), prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
