"""Readers of published image sets: CIFAR's binary records and PNG sprites, SVHN's .mat files.

Nothing is unpacked to disk and nothing is unpickled. Each reader takes a folder and looks for its
files there and in a sub-folder named after the set.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from deep.data.files import reading, tar_files
from deep.data.matlab import read_arrays
from theory.errors import InputError
from theory.record import parse_json


class Part(NamedTuple):
    """Images as stored (bytes, channels first) and their labels, counted from 0."""

    images: UInt8[np.ndarray, "n 3 32 32"]
    labels: Int64[np.ndarray, " n"]


class Published(NamedTuple):
    """Both parts of a set and the files they were read from, in reading order."""

    train: Part
    test: Part
    files: tuple[Path, ...]


@dataclass(frozen=True)
class BinaryForm:
    """A binary version of CIFAR: records of one or two label bytes and 3,072 bytes of pixels.

    The last label byte is the one used. Pixels are channel first: 1,024 red bytes row by row, then
    green, then blue.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int


CIFAR10 = BinaryForm(
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    label_bytes=1,
)
# The two label bytes are the coarse class (of 20) and the fine one (of 100).
CIFAR100 = BinaryForm(
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    label_bytes=2,
)

_MOST_BYTES = 2**28  # that a CIFAR archive unpacks to; the published ones have 184 MB

SPRITE_LABELS = "cifar10_labels.json"
SPRITE_ROWS = 1000
SPRITE_TRAIN = range(45)
SPRITE_TEST = 50


def read_cifar10(data_dir: Path) -> Published:
    """Read CIFAR-10 from its binary archive, the folder unpacked from it, or PNG sprites.

    The sprites are `cifar10_batch_<i>.png`, 1,024 wide and 1,000 high, RGB, one image a row, with
    `cifar10_labels.json`, a list whose entry 1000·i + row is the label. Batches 0 to 44 (those
    present) are the training part and batch 50 the test part. Batches 45 to 49, the last 5,000
    official training images, are never read: they are the customary validation part.

    Raises:
        InputError: None of the three is there, or what is there is incomplete or damaged.
    """
    for root in (data_dir, data_dir / "cifar10"):
        if (found := _read_binary(CIFAR10, root)) is not None:
            return found
        if (root / SPRITE_LABELS).is_file() or any(root.glob("cifar10_batch_*.png")):
            return _read_sprites(root)
    raise _nothing_found(
        data_dir, "cifar10", f"{_binary_names(CIFAR10)}, cifar10_batch_<i>.png with {SPRITE_LABELS}"
    )


def read_cifar100(data_dir: Path) -> Published:
    """Read CIFAR-100, with its fine labels, from its binary archive or the folder unpacked from it.

    Raises:
        InputError: Neither is there, or what is there is incomplete or damaged.
    """
    for root in (data_dir, data_dir / "cifar100"):
        if (found := _read_binary(CIFAR100, root)) is not None:
            return found
    raise _nothing_found(data_dir, "cifar100", _binary_names(CIFAR100))


def read_svhn(data_dir: Path) -> Published:
    """Read SVHN's cropped digits from `train_32x32.mat` and `test_32x32.mat`.

    The files hold `X` (bytes, height × width × channel × n) and `y` (1 to 10, where 10 is the
    digit 0).

    Raises:
        InputError: The files are not there, or damaged.
    """
    names = ("train_32x32.mat", "test_32x32.mat")
    for root in (data_dir, data_dir / "svhn"):
        train, test = files = tuple(root / name for name in names)
        if any(path.is_file() for path in files):
            return Published(_read_mat(train), _read_mat(test), files)
    raise _nothing_found(data_dir, "svhn", " and ".join(names))


def _binary_names(form: BinaryForm) -> str:
    return f"{form.archive}, {form.folder}/{form.train[0]}, {form.train[0]}"


def _nothing_found(data_dir: Path, name: str, wanted: str) -> InputError:
    return InputError(
        f"no {name} in {data_dir}: looked there and in its sub-folder {name} for {wanted}; "
        f"name the folder that holds them, or leave --data-dir out to download"
    )


def _read_binary(form: BinaryForm, root: Path) -> Published | None:
    archive = root / form.archive
    if archive.is_file():
        members = _tar_members(archive, (*form.train, *form.test))
        train, test = (
            _joined([_decode(form, members[name], archive / name) for name in names])
            for names in (form.train, form.test)
        )
        return Published(train, test, (archive,))
    for folder in (root / form.folder, root):
        files = tuple(folder / name for name in (*form.train, *form.test))
        if any(path.is_file() for path in files):
            parts = [_decode(form, _read_bytes(path), path) for path in files]
            train_files = len(form.train)
            return Published(_joined(parts[:train_files]), _joined(parts[train_files:]), files)
    return None


def _tar_members(archive: Path, names: tuple[str, ...]) -> Mapping[str, bytes]:
    found = tar_files(archive, lambda path: path.name in names, _MOST_BYTES)
    members = {path.name: content for path, content in found}
    if missing := [name for name in names if name not in members]:
        raise InputError(f"{archive} lacks {', '.join(missing)}: it is incomplete; get it again")
    return members


def _read_bytes(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def _decode(form: BinaryForm, content: bytes, path: Path) -> Part:
    record_size = form.label_bytes + 3 * 32 * 32
    if not content or len(content) % record_size:
        raise InputError(
            f"{path} has {len(content)} bytes, not a whole number of {record_size}-byte records: "
            f"it is cut short or another format; get it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record_size)
    labels = records[:, form.label_bytes - 1].astype(np.int64)
    return Part(records[:, form.label_bytes :].reshape(-1, 3, 32, 32), labels)


def _joined(parts: list[Part]) -> Part:
    images, labels = zip(*parts, strict=True)
    return Part(np.concatenate(images), np.concatenate(labels))


def _read_sprites(folder: Path) -> Published:
    def sprite(batch: int) -> Path:
        return folder / f"cifar10_batch_{batch}.png"

    train_batches = [batch for batch in SPRITE_TRAIN if sprite(batch).is_file()]
    if not train_batches:
        raise InputError(f"{folder} has no cifar10_batch_<i>.png with i from 0 to 44; add some")
    labels_file = folder / SPRITE_LABELS
    with reading(labels_file):
        labels = parse_json(labels_file.read_bytes(), labels_file)
    if not isinstance(labels, list) or not all(type(k) is int and 0 <= k < 10 for k in labels):
        raise InputError(f"{labels_file} is not a list of whole numbers 0 to 9; get it again")
    parts = []
    for batch in (*train_batches, SPRITE_TEST):
        rows = labels[SPRITE_ROWS * batch : SPRITE_ROWS * (batch + 1)]
        if len(rows) < SPRITE_ROWS:
            raise InputError(
                f"{labels_file} has {len(labels)} labels, none for some images of "
                f"{sprite(batch).name}: it is incomplete; get it again"
            )
        with reading(sprite(batch)):
            parts.append(Part(_read_sprite(sprite(batch)), np.array(rows, dtype=np.int64)))
    files = tuple(sprite(batch) for batch in (*train_batches, SPRITE_TEST))
    return Published(_joined(parts[:-1]), parts[-1], (*files, labels_file))


def _read_sprite(path: Path) -> UInt8[np.ndarray, "1000 3 32 32"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its size, which is looked at here, or of animation
        # No other format: Pillow would run Ghostscript on a PostScript file, whatever its name.
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != (1024, SPRITE_ROWS) or image.mode != "RGB":
                raise InputError(
                    f"{path} is {image.width} × {image.height} in mode {image.mode}, "
                    f"not 1024 × {SPRITE_ROWS} in mode RGB; get the right file"
                )
            pixels = np.asarray(image)
    return pixels.reshape(SPRITE_ROWS, 32, 32, 3).transpose(0, 3, 1, 2)


def _read_mat(path: Path) -> Part:
    with reading(path):
        content = read_arrays(path.read_bytes())
        if not content.keys() >= {"X", "y"}:
            raise InputError(f"{path} lacks X or y, images and labels; get the right file")
        images, labels = content["X"], content["y"].ravel()
        expected = (32, 32, 3, labels.size)
        if images.dtype != np.uint8 or images.shape != expected or not labels.size:
            raise InputError(
                f"{path} holds X of shape {images.shape} and type {images.dtype} beside "
                f"{labels.size} labels, not bytes of 32 × 32 × 3 × labels; get the right file"
            )
        if not np.isin(labels, np.arange(1, 11)).all():
            raise InputError(f"{path} holds labels outside 1 to 10; get the right file")
    return Part(np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10)
