"""A figure with its caption, and how it is written: each format whole, the caption beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from theory.record import write_atomically


@dataclass(frozen=True)
class Drawing:
    """A figure that a record can fill.

    Attributes:
        caption: What it shows, as a paper would print it below.
        plot: Draws it.
    """

    caption: str
    plot: Callable[[], Figure]


def save(
    folder: Path, drawings: Mapping[str, Drawing], formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draws figures into NAME.FORMAT, one file a format; returns the files.

    Args:
        folder: Where.
        drawings: Name -> figure.
        formats: "png", "pdf" or what else matplotlib writes.

    Raises:
        InputError: If the folder cannot be written to.
    """
    paths = []
    for name, drawing in drawings.items():
        figure = drawing.plot()
        for suffix in formats:
            paths.append(folder / f"{name}.{suffix}")
            write_atomically(paths[-1], figure.savefig)
    return paths
