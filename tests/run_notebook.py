"""Executes a notebook as a reader would, for the tests of notebooks."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
RUN = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=300, resources={"metadata": {"path": sys.argv[3]}}).execute()
nbformat.write(book, sys.argv[2])
"""


@dataclass(frozen=True)
class Shown:
    """What a notebook shows once it has run.

    Attributes:
        seconds: That it took, kernel and imports included.
        text: All that it prints.
        images: Number of figures.
    """

    seconds: float
    text: str
    images: int


def run_notebook(name: str, folder: Path) -> Shown:
    """Runs notebooks/<name>.ipynb from top to bottom, in a process of its own.

    Args:
        name: Of the notebook.
        folder: For the executed copy.

    Raises:
        CalledProcessError: If a cell fails.
    """
    done = folder / "done.ipynb"
    start = time.perf_counter()
    arguments = [str(ROOT / "notebooks" / f"{name}.ipynb"), str(done), str(ROOT)]
    subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    cells = nbformat.read(done, 4).cells
    outputs = [out for cell in cells if cell.cell_type == "code" for out in cell.outputs]
    streams = [out for out in outputs if out.output_type == "stream"]
    assert {out.name for out in streams} <= {"stdout"}, "the notebook warns"
    images = [out for out in outputs if "image/png" in out.get("data", {})]
    return Shown(seconds, "".join(out.text for out in streams), len(images))


def unexplained_plots(name: str) -> tuple[int, list[str]]:
    """Number of cells that end in a figure, and those of them that no words follow."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    plots = [k for k, cell in enumerate(cells) if cell.source.endswith("\nfig")]
    return len(plots), [cells[k].source for k in plots if cells[k + 1].cell_type != "markdown"]
