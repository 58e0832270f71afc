"""A figure with its caption, and how it is written: each format whole, the caption beside it."""

import io
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
            write_figure(paths[-1], figure)
    return paths


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure in the format that the file's name asks for, whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    content = io.BytesIO()  # matplotlib leaves a PDF open that meets a full disk
    figure.savefig(content, format=path.suffix.removeprefix("."))
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))
