"""Graphs of different sizes side by side in tensors, and batches gathered from them."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

Pooling = Literal["sum", "mean"]


@dataclass(frozen=True, eq=False)
class Graphs:
    """Graphs with a vector at each node, side by side as one large graph without edges between.

    A batch of graphs is again `Graphs`, gathered from the whole set's tensors: `graphs[numbers]`.

    Attributes:
        features: Vectors of all nodes, graph after graph.
        edge_index: Start and end of each edge as numbers of rows of `features`, both directions of
            an undirected edge.
        nodes: Graph i has nodes `nodes[i]` to `nodes[i + 1]` - 1.
        edges: Likewise its edges.
        pooling: How a graph's nodes are summed up in the protocol of Xu et al. (2019): "sum" for
            molecules and proteins, "mean" for social networks.
    """

    features: Float[Tensor, "nodes features"]
    edge_index: Int64[Tensor, "2 edges"]
    nodes: Int64[Tensor, " graphs_and_one"]
    edges: Int64[Tensor, " graphs_and_one"]
    pooling: Pooling = "sum"

    def __len__(self) -> int:
        return len(self.nodes) - 1

    def __getitem__(self, chosen: Int[Tensor, " chosen"] | slice) -> "Graphs":
        if isinstance(chosen, slice):
            chosen = torch.arange(len(self), device=self.nodes.device)[chosen]
        node, nodes, shift = gathered(self.nodes, chosen)
        edge, edges, _ = gathered(self.edges, chosen)
        shift = shift.repeat_interleave(edges.diff(), output_size=len(edge))
        return Graphs(
            self.features[node], self.edge_index[:, edge] - shift, nodes, edges, self.pooling
        )

    @property
    def shape(self) -> torch.Size:
        """(graphs, features of a node)."""
        return torch.Size((len(self), self.features.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the nodes' features."""
        return self.features.dtype

    @property
    def graph_of_node(self) -> Int64[Tensor, " nodes"]:
        """Number of the graph that each node belongs to."""
        numbers = torch.arange(len(self), device=self.nodes.device)
        return numbers.repeat_interleave(self.nodes.diff(), output_size=len(self.features))

    def isfinite(self) -> Bool[Tensor, "nodes features"]:
        """Where features are neither NaN nor infinite."""
        return self.features.isfinite()

    def to(self, device: torch.device | str) -> "Graphs":
        """The same graphs on a device."""
        tensors = ("features", "edge_index", "nodes", "edges")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def gathered(
    pointers: Int64[Tensor, " graphs_and_one"], chosen: Int[Tensor, " chosen"]
) -> tuple[Int64[Tensor, " items"], Int64[Tensor, " chosen_and_one"], Int64[Tensor, " chosen"]]:
    """Numbers of the chosen graphs' items, pointers to them once gathered, and their shifts.

    An item's old number is its new one plus its graph's shift.
    """
    starts = pointers[chosen]
    sizes = pointers[chosen + 1] - starts
    new = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    shift = starts - new[:-1]
    items = int(new[-1])
    numbers = torch.arange(items, device=pointers.device)
    return numbers + shift.repeat_interleave(sizes, output_size=items), new, shift
