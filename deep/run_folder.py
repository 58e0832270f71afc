"""The folder of one training run: its settings, its logs, its result.

| file                | what it holds                                                       |
| ------------------- | ------------------------------------------------------------------- |
| recipe.json         | every setting, resolved                                             |
| log.jsonl           | a line an epoch: losses and errors                                  |
| checks.jsonl        | a line a check of q̂ ≈ q, see `theory.probe.measure_probe`           |
| checkpoints/        | while it runs, see `deep.resume`                                    |
| lock                | held by the process that trains                                     |
| weights.safetensors | the final weights                                                   |
| result.json         | settings, outcome, command, versions; there once the run has ended  |
"""

import fcntl
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from theory.errors import InputError
from theory.record import check_writable, json_line, parse_json, read_text, reason

RECIPE, LOG, CHECKS, RESULT, WEIGHTS = (
    "recipe.json", "log.jsonl", "checks.jsonl", "result.json", "weights.safetensors",
)  # fmt: skip
CHECKPOINTS, LOCK = "checkpoints", "lock"
# A run writes a checkpoint on these and ends; SIGUSR2 is how SLURM gives notice.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# What a resumed run cannot change even by force: the saved state would not fit.
_FIXED = ("model", "width", "data", "optimizer")
_NAMES = ("recipe", "data_dir")  # where settings and data come from, no settings
# Settings that say where a run came from or how it was watched, not what was trained.
_NO_DIFFERENCE = ("seed", "recipe", "data_dir", "log_samples")
_REMEDY = "name a folder or record"


def has_ended(folder: Path, settings: Mapping[str, Any], *, resume: bool, force: bool) -> bool:
    """Whether the run of these settings in the folder has ended; refuses a folder of another run.

    Args:
        folder: The run's.
        settings: All that decides the result, as JSON can hold it.
        resume: Whether to go on with a run that is there.
        force: Whether to go on with other settings, except those that the saved state depends on.

    Raises:
        InputError: If there is a run and it is not to go on, or another one, or the folder cannot
            be written to.
    """
    path, settings = folder / RECIPE, json.loads(json.dumps(settings))
    check_writable(folder)
    if not path.exists() or not _trained(folder):
        return False
    if not resume:
        raise InputError(f"{folder} holds a run: add --resume to go on, or name another --out")
    old, ended = read_object(path), (folder / RESULT).exists()
    changed = {
        key: f"{key} was {old.get(key)}, is {value}"
        for key, value in settings.items()
        if key not in _NAMES and old.get(key) != value
    }
    fixed = [text for key, text in changed.items() if key in _FIXED]
    if fixed or (changed and ended):
        state = "has ended" if ended else "cannot go on so"
        raise InputError(
            f"the run in {folder} {state} ({'; '.join(fixed or changed.values())}): name another "
            "--out"
        )
    if changed and not force:
        raise InputError(
            f"the settings of the run in {folder} have changed ({'; '.join(changed.values())}): "
            "restore them, or add --force to go on with the new ones"
        )
    return ended


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the folder.

    Raises:
        InputError: If one does already, the folder cannot be written to, or its file system has no
            locks.
    """
    check_writable(folder)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process trains in {folder}: wait for it, or name another --out"
            ) from error
        except OSError as error:
            raise InputError(
                f"{folder} cannot be locked by the one process that may train there "
                f"({reason(error)}): name an --out on another file system"
            ) from error
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Lets one process after another read a folder's record and write it anew.

    Raises:
        InputError: If the folder cannot be written to.
    """
    check_writable(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that cannot
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process trains in the folder now."""
    try:
        with (folder / LOCK).open("rb") as file:
            # Shared: NFS grants an exclusive one only on a file that is open for writing, and two
            # who ask at a time do not take each other for one that trains.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or no process can hold it
        return False
    return False


def _trained(folder: Path) -> bool:
    """Whether a run left more than its settings; one refused at its start did not."""
    lines = any(
        (folder / name).exists() and (folder / name).stat().st_size for name in (LOG, CHECKS)
    )
    return lines or (folder / RESULT).exists() or any((folder / CHECKPOINTS).glob("*"))


class Log:
    """A JSON-lines file that grows, readable at any time, and can be cut back to an earlier length.

    Args:
        path: The file; made by `cut`.

    Attributes:
        size: Its length in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0

    def cut(self, size: int) -> None:
        """Forgets what was written after the file had that length.

        Raises:
            InputError: If it cannot be written, or is shorter.
        """
        try:
            with self.path.open("ab") as file:
                if file.tell() < size:
                    raise InputError(
                        f"{self.path} has lost lines since the checkpoint: start another run"
                    )
                file.truncate(size)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        self.size = size

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line and waits until the disk has it.

        Raises:
            InputError: If it cannot be written (a full disk, say).
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json_line(line))
                file.flush()
                os.fsync(file.fileno())
                self.size = file.tell()
        except OSError as error:
            raise InputError(
                f"cannot write {self.path} ({error.strerror}): free space there and resume"
            ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
        InputError: If it cannot be read or holds something else.
    """
    return _object(path, read_text(path, "", _REMEDY))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON-lines file; a last line that is still being written is left out.

    Raises:
        InputError: If it cannot be read or holds something else.
    """
    lines = read_text(path, "", _REMEDY).split("\n")
    return [_object(path, line) for line in lines[:-1]]


def _object(path: Path, text: str) -> dict[str, Any]:
    content = parse_json(text, path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no record or settings: name what this toolkit wrote")
    return content


def best(lines: list[dict[str, Any]], part: str) -> dict[str, Any] | None:
    """The log's line with the smallest error on "validation" or "test", the first of equals."""
    known = [line for line in lines if line.get(f"{part}_error") is not None]
    return min(known, key=lambda line: line[f"{part}_error"], default=None)


def labels(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each run: its objective, and what else is not the same in all runs.

    Runs of one name differ in their seeds alone, and in what has no bearing on what was trained.
    """
    plain = [
        {k: v for k, v in r.items() if k not in _NO_DIFFERENCE and not k.startswith("check_")}
        for r in recipes
    ]
    keys = dict.fromkeys(key for r in plain for key in r if key != "objective")
    varied = [k for k in keys if len({json.dumps(r.get(k)) for r in plain}) > 1]
    return [
        ", ".join([str(r["objective"]), *(f"{k} {r.get(k)}" for k in varied)]) for r in plain
    ]  # fmt: skip
