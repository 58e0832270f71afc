"""What the readers of data files share: one line for a damaged file, one line for a source."""

import csv
import gzip
import hashlib
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from theory.errors import InputError
from theory.record import check_regular, reason

# What the decoders of gzip, tar, zip, PNG, JSON, CSV, MATLAB and WAV files raise on damaged bytes.
_DAMAGE = (
    *(OSError, EOFError, ValueError, SyntaxError, OverflowError, MemoryError, RecursionError),
    *(zlib.error, tarfile.TarError, zipfile.BadZipFile, Image.DecompressionBombError),
    *(csv.Error, wave.Error, RuntimeError),  # the last without a word by wave, of a chunk's end
)

_MOST_AT_ONCE = 2**28  # the largest file of the published archives, CIFAR-100's, has 154 MB
_MOST_MEMBERS = 2**17  # Speech Commands have 105,900


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a decoder raises on a damaged or missing file into one line that names the file.

    Raises:
        InputError: In the place of it.
    """
    try:
        check_regular(path)
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; add it beside the other files of the set") from error
    except _DAMAGE as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}): it may be cut short or damaged; get it again"
        ) from error


class _Stream(gzip.GzipFile):
    """A tar's bytes, unpacked in one direction and within bounds.

    What a header claims is refused before it is read or skipped. Python's tarfile would otherwise
    hold whatever a header of the pax kind claims to need, and go round in circles where a member
    claims less than no bytes.

    Args:
        path: The .tar.gz.
        most: How many bytes it may unpack to.
    """

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path, "rb")
        self._most = most

    def read(self, size: int | None = -1) -> bytes:
        """As of any file, within the bounds."""
        if size is None or not 0 <= size <= _MOST_AT_ONCE or self.tell() + size > self._most:
            raise ValueError(f"it claims {size} bytes, more than there should be in it")
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Forwards only, and no step to learn where it is."""
        if (offset, whence) == (0, 1):
            return super().seek(0, 1)
        if whence != 0 or not self.tell() <= offset <= self._most:
            raise ValueError("a size in it leads out of the file")
        return super().seek(offset)


def tar_files(
    archive: Path, wanted: Callable[[PurePosixPath], bool], most: int
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and contents of regular files in a .tar.gz, in its order and in one pass.

    Going back in a gzip stream would start it anew. Nothing is written, whatever the names are;
    links and devices are passed over.

    Args:
        archive: The file.
        wanted: Which of them, by name.
        most: How many bytes the archive may unpack to.

    Raises:
        InputError: The archive is missing, cut short, damaged or larger than that.
    """
    with reading(archive), _Stream(archive, most) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count >= _MOST_MEMBERS:
                    raise ValueError(f"it has more than {_MOST_MEMBERS} members")
                name = PurePosixPath(member.name)
                if member.isfile() and wanted(name):
                    content = tar.extractfile(member)
                    yield name, content.read() if content is not None else b""
        while stream.tell() < most:  # the check sum stands at the end, which tarfile leaves unread
            if not stream.read(min(2**20, most - stream.tell())):
                return
        raise ValueError(f"it unpacks to more than {most} bytes")


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
