"""What the readers of data files share: one line for a damaged file, one line for a source."""

import csv
import gzip
import hashlib
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from theory.errors import InputError

# What the decoders of gzip, tar, zip, PNG, JSON, CSV, MATLAB and WAV files raise on damaged bytes.
_DAMAGE = (
    *(OSError, EOFError, ValueError, SyntaxError, OverflowError, MemoryError, RecursionError),
    *(zlib.error, tarfile.TarError, zipfile.BadZipFile, Image.DecompressionBombError),
    *(csv.Error, wave.Error),
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


def tar_files(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and contents of the regular files in a .tar.gz, in its order and in one pass.

    Going back in a gzip stream would start it anew. Nothing is written, whatever the names are.

    Raises:
        InputError: The archive is missing, cut short or damaged.
    """
    with reading(archive), gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.isfile() and (content := tar.extractfile(member)) is not None:
                    yield PurePosixPath(member.name), content.read()
        while stream.read(2**20):  # gzip's check sum stands at the end, which tarfile leaves unread
            pass


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
