"""Small graphs for the tests: as tensors, and as the one-file text of published sets."""

from typing import NamedTuple

import numpy as np
import torch

from deep.data.graph_batches import Graphs

FEATURES = 3


def random_graphs(sizes, pooling="sum", seed=0):
    """Random undirected graphs with normal vectors at the nodes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [(torch.rand(n, n, generator=generator) < 0.4).triu(1) for n in sizes]
    adjacency = torch.block_diag(*blocks)
    start, end = (adjacency | adjacency.T).nonzero().T
    nodes = torch.tensor([0, *sizes]).cumsum(0)
    return Graphs(
        torch.randn(sum(sizes), FEATURES, dtype=torch.float64, generator=generator),
        torch.stack([start, end]),
        nodes,
        torch.searchsorted(start, nodes),
        pooling,
    )


class Drawn(NamedTuple):
    """A graph as drawn: label, a tag for each node, undirected edges between places in it."""

    label: int
    tags: list[int]
    edges: set[tuple[int, int]]


def drawn_graphs(count=20, labels=(0, 2), tags=(3, 5, 9), seed=0):
    """Connected graphs of 3 to 7 nodes, labels in turn."""
    rng = np.random.default_rng(seed)
    graphs = []
    for i in range(count):
        n = int(rng.integers(3, 8))
        edges = {(int(rng.integers(0, j)), j) for j in range(1, n)}
        edges |= {(a, b) for a in range(n) for b in range(a + 1, n) if rng.random() < 0.2}
        graphs.append(Drawn(labels[i % len(labels)], rng.choice(tags, n).tolist(), edges))
    return graphs


def neighbours(graph):
    both = graph.edges | {(b, a) for a, b in graph.edges}
    return [sorted(b for a, b in both if a == node) for node in range(len(graph.tags))]


def text_of(graphs):
    """The one-file form."""
    lines = [f"{len(graphs)}"]
    for graph in graphs:
        lines.append(f"{len(graph.tags)} {graph.label}")
        for tag, others in zip(graph.tags, neighbours(graph), strict=True):
            lines.append(" ".join(map(str, [tag, len(others), *others])))
    return "\n".join(lines) + "\n"
