"""What every record of a run carries, and how it is written: whole, or not at all."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from theory.errors import InputError


def environment() -> dict[str, Any]:
    """Versions, platform, commit of this toolkit and date (UTC), for the record of a run."""
    names = [
        *("mixup-theory", "jaxtyping", "matplotlib", "numpy", "pandas", "pillow", "pooch"),
        *("safetensors", "scikit-learn", "scipy", "seaborn", "torch", "torch-geometric", "tqdm"),
        "tyro",
    ]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "versions": {name: _version(name) for name in names},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with "+changes" if tracked files differ; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*"]
        text = subprocess.run(
            [*describe, "--dirty=+changes"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return text or None


def command_line(module: str) -> str:
    """The command that started this process, as a reader would type it."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Writes a file under another name in the same folder, then puts it in place.

    Args:
        path: Target; its folder is made if need be. An older file there is replaced.
        write: Called with the temporary path, whose suffix is the target's.

    Raises:
        InputError: If the folder or file cannot be written. The target is then as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}): name a folder you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's private mode is not what a result wants
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): free or name another") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Makes the folder and a file in it, so that a fault shows before the work and not after.

    Raises:
        InputError: If that cannot be done. Nothing is left behind either way but the folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}): name a folder you may write to"
        ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes standard JSON, whole or not at all: NaN becomes null, infinities become text.

    Raises:
        InputError: As `write_atomically`.
    """
    text = json.dumps(_without_nan(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def json_line(content: Any) -> str:
    """One line of standard JSON with its line break, for a JSON-lines file; as `write_json`."""
    return json.dumps(_without_nan(content), allow_nan=False, ensure_ascii=False) + "\n"


def _without_nan(value: Any) -> Any:
    """The value with NaN as None and with infinities as text, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
