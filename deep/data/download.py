"""Published files, fetched once into the user's cache and verified by SHA-256.

`MIXUP_THEORY_MIRROR`, when set, is the address of a folder (`http://…/folder`) that holds the same
files under the same names; it takes the place of each file's own site. Sums are verified all the
same, so a mirror need not be trusted, but with files without a published sum.
"""

import os
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from theory.errors import InputError
from theory.record import parse_json, recorded, write_json

MIRROR_VARIABLE = "MIXUP_THEORY_MIRROR"
_MOST_BYTES = 2**32  # of a file; the largest, Speech Commands v0.02, has 2.4 GB


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web and the SHA-256 (hexadecimal) of its content.

    Without a published sum, None, it has to be a zip: see `fetch`.
    """

    url: str
    sha256: str | None

    @property
    def name(self) -> str:
        """The file's name: the last part of its address."""
        return self.url.rsplit("/", 1)[-1]


REMOTE_FILES: dict[str, tuple[RemoteFile, ...]] = {
    "cifar10": (
        RemoteFile(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar100": (
        RemoteFile(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    "svhn": (
        RemoteFile(
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        RemoteFile(
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
    "speech-commands": (
        RemoteFile(
            "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
            "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        ),
    ),
    "speech-commands-v0.01": (
        RemoteFile(
            "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
            "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
        ),
    ),
}


def fetch(file: RemoteFile, cache_dir: str | Path | None = None) -> Path:
    """Return the local path of a remote file, downloading it unless the cache has it already.

    A cached file with the wrong sum is reported by a warning, deleted and fetched again. What is
    being received lies under a temporary name in the cache folder and takes the file's name only
    when its sum is right; on failure it is deleted.

    Args:
        file: What to fetch.
        cache_dir: Where to keep it; the user's cache folder for this project by default.

    Raises:
        InputError: The file cannot be had or its content is not the published one.
    """
    folder = Path(pooch.os_cache("mixup-theory") if cache_dir is None else cache_dir)
    mirror = os.environ.get(MIRROR_VARIABLE)
    address = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    target, record = folder / file.name, folder / f"{file.name}.json"
    try:
        sha256 = file.sha256
        if sha256 is None and record.is_file():
            with recorded(record):
                sha256 = str(parse_json(record.read_bytes(), record)["sha256"])
                if not re.fullmatch("[0-9a-f]{64}", sha256):
                    raise ValueError("it holds no SHA-256")
        if sha256 is not None:
            _drop_if_wrong(target, sha256)
        known = None if sha256 is None else f"sha256:{sha256}"
        pooch.retrieve(address, known, fname=file.name, path=folder, downloader=_download)
        if sha256 is None:
            _record_first(target, record)
    except (OSError, ValueError) as error:  # requests' own exceptions are OSErrors
        raise InputError(
            f"cannot fetch {address}: {_reason(error)}; "
            f"retry, or place {file.name} in a folder and pass it with --data-dir"
        ) from error
    return target


def _download(url: str, output_file: str, _pooch: pooch.Pooch | None) -> None:
    """Write what an address answers to a file, in pooch's form of a downloader.

    Pooch's own downloader leaves the connection open when a transfer fails.
    """
    # As sent, not as a server may unpack it on the way: the sum is that of the packed file.
    headers = {"Accept-Encoding": "identity"}
    with requests.get(url, stream=True, timeout=30, headers=headers) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0)) or None
        with open(output_file, "wb") as output, tqdm(total=size, unit="B", unit_scale=True) as bar:
            for chunk in response.iter_content(2**16):
                if output.write(chunk) + output.tell() > _MOST_BYTES:
                    raise ValueError(f"more than {_MOST_BYTES} bytes were sent")
                bar.update(len(chunk))


def _drop_if_wrong(path: Path, sha256: str) -> None:
    if path.exists() and (found := pooch.file_hash(str(path))) != sha256:
        warnings.warn(
            f"{path} has SHA-256 {found}, not {sha256}: it is deleted and fetched again",
            stacklevel=3,
        )
        path.unlink()


def _record_first(path: Path, record: Path) -> None:
    if not zipfile.is_zipfile(path):
        path.unlink()
        raise ValueError("what was sent is no zip")
    found = {"bytes": path.stat().st_size, "sha256": pooch.file_hash(str(path))}
    write_json(record, found)
    warnings.warn(
        f"{path.name} has no published sum: this first download's SHA-256 {found['sha256']} "
        f"({found['bytes']} bytes) is kept in {record} and holds from now on",
        stacklevel=3,
    )


def _reason(error: OSError | ValueError) -> str:
    match error:
        case requests.HTTPError():
            return f"the server answered {error.response.status_code} {error.response.reason}"
        case requests.exceptions.ChunkedEncodingError():
            return "the transfer broke off"
        case requests.Timeout():
            return "the server did not answer in time"
        case requests.ConnectionError():
            return "no connection to the server"
        case _:  # pooch's own words for a wrong sum, the system's for a full disk
            return " ".join(str(error).split()).rstrip(".")
