"""Readers of published graph sets: one-file text, TUDataset's text files, and its zips.

Nothing is unpacked to disk.
"""

import io
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from deep.data.files import reading
from theory.errors import InputError

_MOST_BYTES = 2**24  # of one file in a zip, unpacked; the largest of the seven sets has 5 MB
_TU_TABLES = ("A", "graph_indicator", "graph_labels", "node_labels")
Table = Int64[np.ndarray, "rows columns"]


class GraphFile(NamedTuple):
    """A set as its files have it, nodes numbered from 0 over all graphs.

    Attributes:
        labels: Label of each graph, as it stands.
        sizes: Number of nodes of each graph.
        tags: Tag of each node, as it stands; None where the files have none.
        edges: Start and end of each edge, in whatever order and however often it stands.
        files: What was read, in reading order.
    """

    labels: Int64[np.ndarray, " graphs"]
    sizes: Int64[np.ndarray, " graphs"]
    tags: Int64[np.ndarray, " nodes"] | None
    edges: Int64[np.ndarray, "edges 2"]
    files: tuple[Path, ...]


def find_graphs(name: str, tu_names: Sequence[str], folder: Path) -> GraphFile:
    """Read a set in the first of its forms that a folder holds.

    One-file text, then TUDataset's text files, then its zip; in the folder, its sub-folders
    `dgcnn_txt` and `tudataset`, and in those of the set's name.

    Args:
        name: The set's name; in a file's name the hyphen may be left out.
        tu_names: TUDataset's names for the same graphs.
        folder: Where to look.

    Raises:
        InputError: If the set is in none of these places, or damaged.
        OSError: If the folder's name is one that the system refuses.
    """
    if not folder.is_dir():
        raise InputError(f"data folder {folder} is not a folder; name one that holds {name}")
    plain = name.replace("-", "")
    for root in (folder, folder / "dgcnn_txt"):
        for spelling in dict.fromkeys((plain, name)):
            for path in (root / f"{spelling}.txt", root / spelling / f"{spelling}.txt"):
                if path.is_file():
                    return read_text(path)
    for tu_name in tu_names:
        for root in (folder, folder / "tudataset"):
            for place in (root, root / tu_name):
                if (path := place / f"{tu_name}_A.txt").is_file():
                    return _read_tu_folder(path)
            if (archive := root / f"{tu_name}.zip").is_file():
                return read_tu_zip(archive)
    wanted = [f"{plain}.txt", *(f"{t}{end}" for t in tu_names for end in ("_A.txt", ".zip"))]
    raise InputError(
        f"no {name} in {folder}: looked there, in its sub-folders dgcnn_txt and tudataset and in "
        f"those of the set's name for {', '.join(wanted)}; name the folder that holds one"
    )


def read_text(path: Path) -> GraphFile:
    """Read the one-file form.

    The first line is the number of graphs. A graph is a line with its number of nodes and its
    label, and a line for each node: its tag, its number of neighbours, and these, from 0.

    Raises:
        InputError: If the file is anything else.
    """
    labels: list[int] = []
    sizes: list[int] = []
    tags: list[int] = []
    edges: list[tuple[int, int]] = []
    with reading(path):
        lines = path.read_text("ascii").splitlines()
        rows = [[int(word) for word in line.split()] for line in lines if line.strip()]
        if not rows or len(rows[0]) != 1:
            raise ValueError("its first line is no number of graphs")
        position = 1
        for graph in range(rows[0][0]):
            top = rows[position] if position < len(rows) else []
            if len(top) != 2 or not 0 < top[0] < len(rows) - position:
                raise ValueError(f"graph {graph} lacks its number of nodes and label, or nodes")
            first = len(tags)
            for node, row in enumerate(rows[position + 1 : position + 1 + top[0]], first):
                neighbours = row[2:]
                fits = len(row) > 1 and row[1] == len(neighbours)
                if not fits or not all(0 <= other < top[0] for other in neighbours):
                    raise ValueError(
                        f"node {node - first} of graph {graph} is no tag, number of neighbours, "
                        f"and so many from 0 to {top[0] - 1}"
                    )
                tags.append(row[0])
                edges.extend((node, first + other) for other in neighbours)
            sizes.append(top[0])
            labels.append(top[1])
            position += 1 + top[0]
        if position < len(rows):
            raise ValueError(f"it goes on after its {rows[0][0]} graphs")
        arrays = [np.array(part, np.int64) for part in (labels, sizes, tags)]
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    return GraphFile(arrays[0], arrays[1], arrays[2], pairs, (path,))


def read_tu_zip(archive: Path) -> GraphFile:
    """Read TUDataset's zip, in memory and within bounds.

    Raises:
        InputError: If it is damaged or incomplete, or a file in it is too large, encrypted, or
            packed in a way that TUDataset does not use.
    """
    tables = {}
    with reading(archive), zipfile.ZipFile(archive) as members:
        for part in _TU_TABLES:
            found = [m for m in members.infolist() if m.filename.endswith(f"_{part}.txt")]
            if not found:
                continue
            info = found[0]
            packed = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if len(found) > 1 or packed or info.flag_bits & 1 or info.file_size > _MOST_BYTES:
                raise ValueError(
                    f"{info.filename} is there twice, encrypted, packed in an unknown way or "
                    f"larger than {_MOST_BYTES} bytes"
                )
            with members.open(info) as stream:  # read() would unpack it all, whatever its size says
                tables[part] = _table(stream.read(info.file_size), info.filename)
        return _from_tables(tables, (archive,))


def _read_tu_folder(edges: Path) -> GraphFile:
    paths = [
        edges.with_name(f"{edges.name.removesuffix('A.txt')}{part}.txt") for part in _TU_TABLES
    ]
    if not paths[-1].is_file():  # node labels, which social networks lack
        paths.pop()
    tables = {}
    for part, path in zip(_TU_TABLES, paths, strict=False):
        with reading(path):
            tables[part] = _table(path.read_bytes(), path.name)
    with reading(edges):
        return _from_tables(tables, tuple(paths))


def _table(content: bytes, name: str) -> Table:
    """Rows of one number, or of two with a comma between (of edges)."""
    columns = 2 if name.endswith("_A.txt") else 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of a file without rows, and of fractions
        try:
            stream = io.BytesIO(content)
            rows = np.loadtxt(stream, np.int64, delimiter=",", ndmin=2) if content else None
        except Warning as error:
            raise ValueError(f"{name} is empty or holds fractions") from error
    if rows is None or rows.shape[1] != columns:
        raise ValueError(f"{name} is empty or has not {columns} numbers a row")
    return rows


def _from_tables(tables: Mapping[str, Table], files: tuple[Path, ...]) -> GraphFile:
    """TUDataset's form, where everything is counted from 1.

    Raises:
        ValueError: If a table is missing or the tables do not fit one another.
    """
    if missing := [part for part in _TU_TABLES[:3] if part not in tables]:
        raise ValueError(f"there is no file that ends in _{missing[0]}.txt")
    edges, labels = tables["A"] - 1, tables["graph_labels"][:, 0]
    graph = tables["graph_indicator"][:, 0] - 1
    if (np.diff(graph) < 0).any() or not np.array_equal(np.unique(graph), np.arange(len(labels))):
        raise ValueError(
            f"_graph_indicator does not run from 1 to {len(labels)}, as many as labels"
        )
    tags = tables["node_labels"][:, 0] if "node_labels" in tables else None
    if tags is not None and len(tags) != len(graph):
        raise ValueError(f"_node_labels has {len(tags)} rows for {len(graph)} nodes")
    if edges.min() < 0 or edges.max() >= len(graph):
        raise ValueError(f"_A names nodes outside 1 to {len(graph)}")
    if (graph[edges[:, 0]] != graph[edges[:, 1]]).any():
        raise ValueError("_A has an edge between two graphs")
    return GraphFile(labels, np.bincount(graph), tags, edges, files)
