"""Image sets by name, normalised and split: scikit-learn's digits, CIFAR-10, CIFAR-100, SVHN."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from deep.data.download import REMOTE_FILES, fetch
from deep.data.examples import Examples
from deep.data.files import source_line
from deep.data.published import Published, read_cifar10, read_cifar100, read_svhn
from theory.errors import InputError, unknown

_DIGITS_SPLIT_SEED = 0
_READERS: dict[str, tuple[Callable[[Path], Published], int]] = {
    "cifar10": (read_cifar10, 10),
    "cifar100": (read_cifar100, 100),
    "svhn": (read_svhn, 10),
}
IMAGE_SETS = ("digits", *_READERS)


@dataclass(frozen=True, kw_only=True)
class ImageData(Examples):
    """A training and a test part of labelled images, normalised per channel.

    Inputs are (samples, channels, height, width). Per-channel normalisation makes each channel's
    mean over all images *and pixels* zero. It does not make the mean image zero: the mean over
    images at one pixel stays what it is (digits are bright in the middle and dark at the rim). So
    the assumption E[x'] = 0 of the MixupE approximation (Zou, Verma et al., "MixupE", UAI 2023)
    does not follow from this normalisation.

    Attributes:
        mean: Mean of each channel over the training part, in pixel units of [0, 1].
        std: Standard deviation of each channel, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_images(name: str, data_dir: str | Path | None = None) -> ImageData:
    """Load an image set as 3 × 32 × 32 tensors.

    `digits` are the 1,797 scans of 8 × 8 that scikit-learn ships (values 0 to 16, scaled to
    [0, 1]), upsampled bilinearly to 32 × 32, repeated to three channels and split 80 to 20, each
    class in proportion, always in the same way (random_state 0). The other sets keep their
    published split.

    Args:
        name: One of `IMAGE_SETS`, in any case.
        data_dir: A folder that holds the published files (see `deep.data.published`). Without it
            they are downloaded once and kept in the user's cache.

    Raises:
        InputError: Unknown name, no usable files in the folder, a damaged file, labels out of
            range, or a failed download.
    """
    name = name.casefold()
    if name not in IMAGE_SETS:
        raise unknown("image set", name, IMAGE_SETS)
    if name == "digits":
        if data_dir is not None:
            raise InputError("digits come with scikit-learn; drop --data-dir or name another set")
        return _digits()
    if data_dir is None:
        folder = [fetch(file).parent for file in REMOTE_FILES[name]][-1]
    else:
        folder = Path(data_dir).expanduser()
    try:
        return _published(name, folder)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _published(name: str, folder: Path) -> ImageData:
    if not folder.is_dir():
        raise InputError(f"data folder {folder} is not a folder; name one that holds {name}")
    read, num_classes = _READERS[name]
    train, test, files = read(folder)
    for part, labels in (("training", train.labels), ("test", test.labels)):
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(
                f"{name}'s {part} labels in {folder} run from {labels.min()} to {labels.max()}, "
                f"not within 0 to {num_classes - 1}: damaged or not {name}; get the files again"
            )
    return _normalised(
        name,
        *(_unit_range(train.images), torch.from_numpy(train.labels)),
        *(_unit_range(test.images), torch.from_numpy(test.labels)),
        num_classes=num_classes,
        source=source_line(files),
    )


def _digits() -> ImageData:
    scans = load_digits()
    images = torch.from_numpy(scans.images.astype(np.float32) / 16).unsqueeze(1)
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    images = images.repeat(1, 3, 1, 1)
    labels = torch.from_numpy(scans.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=0.2,
        stratify=scans.target,
        random_state=_DIGITS_SPLIT_SEED,
    )
    return _normalised(
        "digits",
        *(images[train], labels[train]),
        *(images[test], labels[test]),
        num_classes=10,
        source="scikit-learn digits, 8 × 8 upsampled to 32 × 32",
    )


def _unit_range(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32)).div_(255)


def _normalised(
    name: str,
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    num_classes: int,
    source: str,
) -> ImageData:
    """Normalise in place: 50,000 images take 0.6 GB once, not three times."""
    std, mean = torch.std_mean(x_train, dim=(0, 2, 3), correction=0)
    if not (std > 0).all():
        raise InputError(
            f"{name} ({source}): a colour channel is constant over the training part; check it"
        )
    for images in (x_train, x_test):
        images.sub_(mean[:, None, None]).div_(std[:, None, None])
    return ImageData(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        num_classes=num_classes,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        source=source,
    )
