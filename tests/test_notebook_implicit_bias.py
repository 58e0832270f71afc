"""The notebook runs from top to bottom, in time, and its printed numbers are its claims."""

import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "implicit_bias.ipynb"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=90, resources={"metadata": {"path": sys.argv[3]}}).execute()
nbformat.write(book, sys.argv[2])
"""


def test_the_notebook_runs_in_under_90_seconds_and_shows_what_it_says(tmp_path):
    """In a process of its own, as a reader runs it."""
    done = tmp_path / "done.ipynb"
    start = time.perf_counter()
    arguments = [str(NOTEBOOK), str(done), str(NOTEBOOK.parent.parent)]
    subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, capture_output=True)
    assert time.perf_counter() - start < 90.0
    book = nbformat.read(done, 4)
    outputs = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    images = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(images) == 4
    text = "".join(out.text for out in outputs if out.output_type == "stream")
    rates = re.findall(r"([+-]\d\.\d+) ± (\S+)   theory ([+-]\d\.\d+)", text)
    assert len(rates) == 8
    for fitted, error, theory in rates:
        assert abs(float(fitted) - float(theory)) <= float(error) + 1e-5
    limits = re.findall(r"limit +([+-]\d+\.\d)°, at α = 1e-10 +([+-]\d+\.\d)°", text)
    (corner, on_its_way), (other, nearly_there) = [tuple(map(float, row)) for row in limits]
    assert (corner, other) == (0.0, 26.9)
    assert abs(on_its_way) > 3.0
    assert abs(nearly_there - other) < 3.0


def test_every_plot_is_followed_by_what_is_seen():
    cells = nbformat.read(NOTEBOOK, 4).cells
    plots = [k for k, cell in enumerate(cells) if cell.source.endswith("\nfig")]
    assert len(plots) == 4
    assert all(cells[k + 1].cell_type == "markdown" for k in plots)
