"""Checkpoints of a run: a folder each, whole or not there, the newest usable one found again."""

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deep.checkpoint import load_tensors, load_weights, save_weights
from theory.errors import InputError
from theory.record import check_regular, read_text, reason

WEIGHTS, STATE, SUMS = "weights.safetensors", "state.pt", "SHA256SUMS"


class Checkpoints:
    """The checkpoints of one run, `<folder>/<step>/` with the weights and everything else.

    Args:
        folder: Made when the first one is saved.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, model: nn.Module, state: dict[str, Any]) -> None:
        """Writes one checkpoint and drops those beyond `keep`, and those of later steps.

        Later ones are damaged, or the run would not have fallen back behind them; counted among the
        newest they would outlive this one.

        Under another name first: a process that is killed while writing leaves the older ones and
        no half of this one.

        Args:
            step: Optimiser steps done; names the checkpoint.
            model: Its parameters and buffers go to a safetensors file.
            state: Tensors, numbers, strings, and lists and dicts of them.

        Raises:
            InputError: If it cannot be written (a full disk, say). The older ones stay.
        """
        partial = self.folder / f".{step}"
        target = self.folder / str(step)
        try:
            for left in self.folder.glob(".*"):  # of a process that was killed while writing
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
            save_weights(model, partial / WEIGHTS)
            buffer = io.BytesIO()  # so that a full disk is an OSError
            torch.save(state, buffer)
            (partial / STATE).write_bytes(buffer.getbuffer())
            (partial / SUMS).write_text(_sums(partial))
            for path in (partial / WEIGHTS, partial / STATE, partial / SUMS, partial):
                _to_disk(path)
            if target.exists():  # a damaged one that a resumed run fell back from
                shutil.rmtree(target)
            partial.rename(target)
        except (OSError, InputError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            older = self.steps()
            kept = f"the one of step {older[-1]} is kept" if older else "there is none yet"
            raise InputError(
                f"cannot write the checkpoint of step {step} to {self.folder} ({reason(error)}; "
                f"{kept}): free space there and resume"
            ) from error
        steps = self.steps()
        stay = [other for other in steps if other <= step][-self.keep :]
        for other in set(steps).difference(stay):
            shutil.rmtree(self.folder / str(other), ignore_errors=True)

    def load(self, model: nn.Module, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Loads the newest usable checkpoint's weights into the model and returns its state.

        Args:
            model: Receives the weights.
            warn: Called with one line for each damaged checkpoint that is passed over.

        Returns:
            The state as given to `save`, or None if there is no checkpoint.

        Raises:
            InputError: If there are checkpoints and none can be used.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.folder / str(step)
            try:
                state = _read_state(path)
                load_weights(model, path / WEIGHTS)
            except InputError as error:
                warn(f"checkpoint of step {step} is passed over: {error}")
                continue
            return state
        if steps:
            raise InputError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be used: start anew in "
                "another folder"
            )
        return None

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def remove(self) -> None:
        """Removes them all, once the run has its result."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _sums(path: Path) -> str:
    """Both files' SHA-256, as `sha256sum` prints and checks them."""
    files = (WEIGHTS, STATE)
    sums = []
    for name in files:
        try:
            check_regular(path / name)
            with (path / name).open("rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise InputError(f"{path / name} cannot be read ({reason(error)})") from error
    return "".join(f"{digest}  {name}\n" for digest, name in zip(sums, files, strict=True))


def _read_state(path: Path) -> dict[str, Any]:
    """The state of one checkpoint, once both files are known to be what was saved."""
    if read_text(path / SUMS, "", "take another checkpoint") != _sums(path):
        raise InputError(f"{path} is truncated or damaged")
    state = load_tensors(path / STATE)
    if not isinstance(state, dict):
        raise InputError(f"{path / STATE} holds no state of a run")
    return state


def _to_disk(path: Path) -> None:
    """Waits until the disk has a file's or a folder's content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that cannot
            os.fsync(handle)
    finally:
        os.close(handle)
