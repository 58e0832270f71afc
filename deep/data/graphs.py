"""Graph sets by name, from one-file text, TUDataset's text files or its zips.

The names and what they mean are those of Xu et al., "How powerful are graph neural networks?", ICLR
2019, and of TUDataset (Morris et al., 2020). PTC is the set of 344 graphs with 25.56 nodes on
average that Xu et al. use; TUDataset's PTC_MR, with 14.29, is another one under its own name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from deep.data.download import RemoteFile, fetch
from deep.data.examples import Examples, in_proportion
from deep.data.files import source_line
from deep.data.graph_batches import Graphs, Pooling
from deep.data.graph_files import GraphFile, find_graphs, read_tu_zip
from theory.errors import InputError, unknown

# Name -> TUDataset's names for the same graphs. Its PTC is four sets, none of which is this one.
_TU_NAMES: dict[str, tuple[str, ...]] = {
    "MUTAG": ("MUTAG",),
    "PTC": (),
    "PROTEINS": ("PROTEINS", "PROTEINS_full"),
    "NCI1": ("NCI1",),
    "IMDB-BINARY": ("IMDB-BINARY",),
    "IMDB-MULTI": ("IMDB-MULTI",),
    "PTC_MR": ("PTC_MR",),
}
GRAPH_SETS = tuple(_TU_NAMES)
_SOCIAL = ("IMDB-BINARY", "IMDB-MULTI")
_TU_ADDRESS = "https://www.chrsmrrs.com/graphkerneldatasets"
_SPLIT_SEED = 0
_MOST_FEATURES = 2**26  # nodes × tags of a set, 256 MiB; NCI1, the largest, has 4.5 million


@dataclass(frozen=True, kw_only=True)
class GraphExamples(Examples):
    """A training and a test part of labelled graphs.

    Attributes:
        x_train: Training graphs.
        x_test: Test graphs.
    """

    x_train: Graphs  # type: ignore[assignment]  # indexed like a tensor, which suffices to train
    x_test: Graphs  # type: ignore[assignment]


def load_graph_examples(name: str, data_dir: str | Path | None = None) -> GraphExamples:
    """Load a graph set with a fixed split of 90 to 10, classes in proportion (seed 0).

    Arguments and errors as for `load_graphs`.
    """
    graphs, labels, source = load_graphs(name, data_dir)
    test, train = in_proportion(labels, max(1, len(graphs) // 10), _SPLIT_SEED)
    return GraphExamples(
        name=_canonical(name),
        x_train=graphs[train],
        y_train=labels[train],
        x_test=graphs[test],
        y_test=labels[test],
        num_classes=int(labels.max()) + 1,
        source=source,
    )


def load_graphs(
    name: str, data_dir: str | Path | None = None
) -> tuple[Graphs, Int64[Tensor, " graphs"], str]:
    """All graphs of a set, their labels from 0, and a line that says where they come from.

    A node's features are the one-hot code of its tag among all tags of the set. Where the nodes
    have no tags, or all the same, the degree takes the tag's place (Xu et al., 2019). Labels are
    numbered in the order of the file's own. Edges lead both ways, each once.

    Args:
        name: One of `GRAPH_SETS`, in any case.
        data_dir: A folder that holds the set as `<NAME>.txt` (first line: number of graphs; each
            graph: number of nodes and label; each node: tag, number of neighbours, neighbours from
            0), as TUDataset's `<NAME>_A.txt` and so on, or as its `<NAME>.zip`: there, or in the
            sub-folders `dgcnn_txt` and `tudataset`, or in one of the set's own name. The first
            form found is read. Without a folder TUDataset's zip is downloaded once.

    Raises:
        InputError: Unknown name, no usable files in the folder, a damaged file, or a failed
            download.
    """
    name = _canonical(name)
    if data_dir is None:
        if not _TU_NAMES[name]:
            raise InputError(
                f"{name} cannot be downloaded, TUDataset's PTC_MR is another set: pass --data-dir "
                f"with a folder that holds {name}.txt, or take PTC_MR"
            )
        found = read_tu_zip(fetch(RemoteFile(f"{_TU_ADDRESS}/{_TU_NAMES[name][0]}.zip", None)))
    else:
        try:
            found = find_graphs(name, _TU_NAMES[name], Path(data_dir).expanduser())
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    graphs, labels = _assembled(found, "mean" if name in _SOCIAL else "sum")
    if len(labels.unique()) < 2 or len(graphs) < 10:
        raise InputError(
            f"{found.files[0]} holds {len(graphs)} graphs of {len(labels.unique())} classes, too "
            "few to train and test on: get the whole set"
        )
    return graphs, labels, source_line(found.files)


def _canonical(name: str) -> str:
    for known in GRAPH_SETS:
        if known.casefold() == name.casefold():
            return known
    raise unknown("graph set", name, GRAPH_SETS)


def _assembled(found: GraphFile, pooling: Pooling) -> tuple[Graphs, Int64[Tensor, " graphs"]]:
    """Tensors of a set: edges both ways and once each, tags or degrees one-hot."""
    nodes = np.concatenate([[0], found.sizes.cumsum()])
    start, end = found.edges.T
    codes = np.unique(np.concatenate([start * nodes[-1] + end, end * nodes[-1] + start]))
    start, end = np.divmod(codes, nodes[-1])  # sorted, so graph after graph
    tags = found.tags
    if tags is None or len(np.unique(tags)) == 1:
        tags = np.bincount(start, minlength=nodes[-1])
    values, place = np.unique(tags, return_inverse=True)
    if len(values) * nodes[-1] > _MOST_FEATURES:
        raise InputError(
            f"{found.files[0]} has {len(values)} tags or degrees on {nodes[-1]} nodes, too many to "
            "code one-hot: is it another set?"
        )
    graphs = Graphs(
        torch.eye(len(values))[torch.from_numpy(place)],
        torch.from_numpy(np.stack([start, end])),
        torch.from_numpy(nodes),
        torch.from_numpy(np.searchsorted(start, nodes)),
        pooling,
    )
    return graphs, torch.from_numpy(np.unique(found.labels, return_inverse=True)[1])
