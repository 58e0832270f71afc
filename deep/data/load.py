"""Data sets by name, from embedded ones to the published files of the benchmarks."""

from collections.abc import Callable
from pathlib import Path

from deep.data.examples import Examples
from deep.data.graphs import GRAPH_SETS, load_graph_examples
from deep.data.images import IMAGE_SETS, load_images
from deep.data.speech import SPEECH_SETS, load_speech
from deep.data.tabular import TABLES, load_table_examples
from theory.errors import unknown

# One kind of data a line: its names, and what loads one of them.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[str, str | Path | None], Examples]], ...] = (
    (IMAGE_SETS, load_images),
    (GRAPH_SETS, load_graph_examples),
    (SPEECH_SETS, load_speech),
    (TABLES, load_table_examples),
)
DATA_SETS = tuple(name for names, _ in _KINDS for name in names)


def load_examples(name: str, data_dir: str | Path | None = None) -> Examples:
    """Load a data set of any kind.

    Args:
        name: One of `DATA_SETS`, in any case.
        data_dir: A folder that holds the published files. Without it they are downloaded once,
            verified and kept in the user's cache.

    Raises:
        InputError: Unknown name, no usable files in the folder, a damaged file, or a failed
            download.
    """
    for names, load in _KINDS:
        for known in names:
            if known.casefold() == name.casefold():
                return load(known, data_dir)
    raise unknown("data set", name, DATA_SETS)
