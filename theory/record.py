"""What every record of a run carries, how it is written (whole, or not at all) and read back."""

import errno
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
            f"cannot write {path} ({reason(error)}): name a folder you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # some disks say only now that they are full
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's private mode is not what a result wants
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({reason(error)}): free or name another") from error
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
            f"cannot write to {folder} ({reason(error)}): name a folder you may write to"
        ) from error


@contextmanager
def writable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """`check_writable` for the work inside; folders that it made and that stay empty go again.

    Raises:
        InputError: As `check_writable`.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # something is in it
                path.rmdir()


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


def with_nan(value: Any) -> Any:
    """What `write_json` made of measured numbers, with NaN and infinities again in their places.

    For parts of a record in which null means nothing else.
    """
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    if value is None or value in ("inf", "-inf"):
        return math.nan if value is None else float(value)
    return value


def reason(error: Exception) -> str:
    """What an error says, in the system's words where it is the system's."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError for a folder or pipe in a file's place: one would wait for a pipe forever."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_text(path: str | os.PathLike[str], what: str, remedy: str) -> str:
    """The text of a file that anyone may have written.

    Args:
        path: The file.
        what: What an error calls it before its name, "recipe " say.
        remedy: What an error asks for.

    Raises:
        InputError: If it is missing, no regular file, or no UTF-8.
    """
    try:
        check_regular(path)
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name, too
        raise InputError(f"cannot read {what}{path} ({reason(error)}): {remedy}") from error


def parse_json(text: str | bytes, path: str | os.PathLike[str]) -> Any:
    """What standard JSON says: without NaN, infinity and numbers or characters beyond a computer's.

    Args:
        text: As read from the file.
        path: The file, for an error.

    Raises:
        InputError: If it is anything else.
    """
    try:
        content = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_machine_integer
        )
        if re.search(r"\\u[dD][89a-fA-F]", str(text)):  # a half of a pair alone cannot be written
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}): is it damaged, or no record?") from error
    return content


def _no_number(text: str) -> float:
    raise ValueError(f"{text} stands where null or text should")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _machine_integer(text: str) -> int:
    value = int(text)
    return value if abs(value) < 2**64 else int(_no_number(text))


@contextmanager
def recorded(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what work on a record of another shape raises into one line that names the file.

    For code that takes a record apart as the toolkit writes it. What someone changed in it shows
    where the missing or other part is used; --debug shows the place.

    Raises:
        InputError: In the place of it.
    """
    try:
        yield
    except InputError:
        raise
    except (
        *(LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError),
    ) as error:
        raise InputError(
            f"{path} is no record that fits here, or damaged ({type(error).__name__}: {error}): "
            "name what this toolkit wrote"
        ) from error
