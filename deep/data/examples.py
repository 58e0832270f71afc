"""Labelled examples in a training and a test part, whatever their kind."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.model_selection import train_test_split
from torch import Tensor

from theory.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A training and a test part.

    Attributes:
        name: The set's name.
        x_train: Training inputs, float32, as a network takes them.
        y_train: Training labels, 0 to `num_classes` - 1.
        x_test: Test inputs, prepared with numbers of the training part alone.
        y_test: Test labels.
        num_classes: How many classes the set has.
        source: Where the examples come from, in one line.
    """

    name: str
    x_train: Float[Tensor, "train *dims"]
    y_train: Int[Tensor, " train"]
    x_test: Float[Tensor, "test *dims"]
    y_test: Int[Tensor, " test"]
    num_classes: int
    source: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width; a row of a table is one pixel whose channels are columns."""
        channels, height, width = (*self.x_train.shape[1:], 1, 1)[:3]
        return channels, height, width


def in_proportion(
    labels: Int[Tensor, " samples"], count: int, seed: int
) -> tuple[Int[Tensor, " count"], Int[Tensor, " rest"]]:
    """Numbers of `count` examples drawn with the classes in proportion, and of all others.

    The proportion is kept where every class has two examples or more and there are enough on both
    sides for every class to have one; otherwise the draw ignores classes.

    Args:
        labels: Class indices.
        count: How many; 0 and all of them need no draw.
        seed: Of the draw.

    Raises:
        InputError: If there are fewer examples than that.
    """
    n = len(labels)
    if count > n:
        raise InputError(f"{count} examples are asked for and there are {n}: ask for fewer")
    if count in (0, n):
        return torch.arange(count), torch.arange(count, n)
    sizes = labels.unique(return_counts=True)[1]
    enough = min(count, n - count) >= len(sizes) and int(sizes.min()) >= 2
    chosen, rest = train_test_split(
        np.arange(n), train_size=count, random_state=seed, stratify=labels if enough else None
    )
    return torch.from_numpy(chosen), torch.from_numpy(rest)
