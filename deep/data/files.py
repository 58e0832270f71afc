"""What the readers of data files share: one line for a damaged file, one line for a source."""

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from theory.errors import InputError

# What the decoders of gzip, tar, zip, PNG, JSON and MATLAB files raise on damaged bytes.
_DAMAGE = (
    *(OSError, EOFError, ValueError, SyntaxError, OverflowError, MemoryError, RecursionError),
    *(zlib.error, tarfile.TarError, zipfile.BadZipFile, Image.DecompressionBombError),
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a decoder raises on a damaged or missing file into one line that names the file.

    Raises:
        InputError: In the place of it.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; add it beside the other files of the set") from error
    except _DAMAGE as error:
        fault = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({fault}): it may be cut short or damaged; get it again"
        ) from error


def source_line(files: Sequence[Path]) -> str:
    """Names and one sum, that of all the files' bytes in reading order (`cat … | sha256sum`)."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    names = [path.name for path in files]
    if len(names) > 8:
        names = [f"{len(names)} files from {names[0]} to {names[-1]}"]
    return f"{', '.join(names)}; SHA-256 {digest.hexdigest()}"
