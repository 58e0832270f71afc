"""Many training runs of `deep.train`, each a process of its own, and what came of them."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep.run_folder import CHECKS, LOG, RESULT, STOPPING, in_turn, read_lines, read_object
from theory.record import json_line, recorded, write_atomically, write_json

RUNS = "runs.jsonl"
OUTPUT, FAILURE = "output.txt", "failure.json"


@dataclass(frozen=True)
class Cell:
    """One run of a campaign or grid.

    Attributes:
        name: Its folder's name.
        flags: Of `deep.train`, without --out and --resume.
    """

    name: str
    flags: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        """Trains it, or goes on with it, in its own folder below the given one."""
        own = ["--out", str(folder / self.name), "--resume"]
        return [sys.executable, "-m", "deep.train", *self.flags, *own]

    def start(self, folder: Path, threads: int) -> subprocess.Popen:
        """Begins to train it, its output added to output.txt in its folder."""
        (folder / self.name).mkdir(parents=True, exist_ok=True)
        (folder / self.name / FAILURE).unlink(missing_ok=True)
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (folder / self.name / OUTPUT).open("a") as output:
            return subprocess.Popen(
                self.command(folder), stdout=output, stderr=output, env=environ,
                start_new_session=True,
            )  # fmt: skip


def carry_out(
    folder: Path,
    cells: Sequence[Cell],
    *,
    jobs: int,
    threads: int,
    minutes: float | None = None,
    received: Sequence[int] = (),
) -> dict[str, str]:
    """Trains the cells that are not finished, some at a time, on this machine.

    Args:
        folder: Their folders' folder; runs.jsonl gathers there what is finished.
        cells: What is asked for.
        jobs: How many train at a time.
        threads: Of each.
        minutes: After which no more is begun and those under way are stopped, checkpoints written.
        received: Grows by the number of each signal that asks to stop.

    Returns:
        Name of each cell -> "done", or why not: "failed: …", "stopped", "waiting".
    """
    names = [cell.name for cell in cells]
    done = gather(folder, names)
    waiting = [cell for cell in cells if cell.name not in done]
    state = {name: "done" if name in done else "waiting" for name in names}
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    active: dict[Cell, subprocess.Popen] = {}
    while waiting or active:
        stop = bool(received) or time.monotonic() > end
        while waiting and not stop and len(active) < jobs:
            cell = waiting.pop(0)
            active[cell] = cell.start(folder, threads)
            print(f"{cell.name}: started", flush=True)
        if stop:
            for process in active.values():
                process.terminate()
        for cell, process in list(active.items()):
            code = process.wait() if stop else process.poll()
            if code is None:
                continue
            del active[cell]
            state[cell.name] = outcome(folder / cell.name, code)
            gather(folder, names)
            print(f"{cell.name}: {state[cell.name]}", flush=True)
        if stop:
            break
        time.sleep(0.2)
    gather(folder, names)
    return state


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying by them."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda n, _: received.append(n)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def outcome(folder: Path, code: int) -> str:
    """What came of a run: "done", "stopped", or "failed: …" with its last words.

    A failure is kept in the run's failure.json until it is started again.

    Args:
        folder: The run's.
        code: Its exit code, negative for a signal.

    Raises:
        InputError: If the failure cannot be written down.
    """
    if code == 0:
        return "done"
    # Negative: the signal came before the run could listen, and it had nothing to save.
    if -code in STOPPING or code - 128 in STOPPING:
        return "stopped"
    if code < 0:
        told = f"failed: killed by {signal.Signals(-code).name}"
    else:
        lines = (folder / OUTPUT).read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        told = f"failed: {last.strip()}"
    write_json(folder / FAILURE, {"outcome": told, "code": code})
    return told


def shared_threads(jobs: int, threads: int | None) -> int:
    """Threads of each of some jobs at a time: as asked, or the processors shared among them."""
    return threads or max(1, (os.cpu_count() or 1) // jobs)


def gather(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Writes runs.jsonl: of each finished run its name, settings, result, log and checks.

    A run that stands there already stays, also without a folder of its own, so that this file is
    all that must be carried from one machine to another, and also if it is not asked for. Numbers
    have six significant digits.

    Returns:
        Name of each finished run that is asked for -> its line.

    Raises:
        InputError: If a file of a run cannot be read, or runs.jsonl cannot be written.
    """
    with in_turn(folder), recorded(folder / RUNS):
        return _gathered(folder, names)


def _gathered(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    known, found = gathered(folder), {}
    for name in names:
        path = folder / name
        if name in known:
            found[name] = known[name]
        elif (path / RESULT).exists():
            result = read_object(path / RESULT)
            with recorded(path / RESULT):
                recipe = result.pop("recipe")
            log, checks = read_lines(path / LOG), read_lines(path / CHECKS)
            line = {"name": name, "recipe": recipe, "result": result, "log": log, "checks": checks}
            found[name] = _rounded(line)
    text = "".join(map(json_line, (found | known).values()))
    write_atomically(folder / RUNS, lambda path: path.write_text(text, encoding="utf-8"))
    return found


def gathered(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of runs.jsonl by their runs' names; {} where there is none yet.

    Raises:
        InputError: If it cannot be read, or is no such record.
    """
    path = folder / RUNS
    if not path.exists():
        return {}
    with recorded(path):
        return {_name(line): line for line in read_lines(path)}


def _name(line: Mapping[str, Any]) -> str:
    """The run's name, also of a record made before names were in it."""
    recipe = line["recipe"]
    return str(line.get("name") or f"{recipe['objective']}-seed{recipe['seed']}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
