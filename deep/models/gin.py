"""GIN-0, the graph isomorphism network (Xu et al., 2019), split where Mixup acts."""

from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deep.data.graph_batches import Graphs
from deep.models.embedder import Embedder
from theory.errors import InputError

LAYERS = 5  # with the input layer
DROPOUT = 0.5


class GIN(Embedder):
    """GIN-0 of Xu et al., "How powerful are graph neural networks?", ICLR 2019, as published.

    Five layers with the input one. Each of the other four adds up the vectors of a node and of its
    neighbours (ε = 0, not learned) and applies a perceptron of two layers with batch norm and ReLU
    between them, then batch norm and ReLU; PyTorch's default initialisation. A graph's embedding is
    its nodes' vectors of all five layers, the tags themselves among them, each summed over the
    nodes, or averaged where `Graphs.pooling` says so, side by side.

    Where Mixup acts: a graph is no vector, so what is mixed is the graph embedding z = `embed`, and
    Theorem 1 of Mixup reads with x := z, Δ := z' - z and J := ∂f/∂z. f = `head` is affine in z,
    f = W z + b and J = W (dropout off), so

    - mixing embeddings is mixing logits, f(λz + (1 - λ)z') = λf(z) + (1 - λ)f(z');
    - J z = f - b exactly: the homogeneity gap (g - y)ᵀ(f - J z) is the bias alone, (g - y)ᵀb, and
      zero without one; q̂ may be computed from logits alone;
    - x̄' is the mean embedding, and MixupE's assumption that it is zero is about that: after ReLU
      and a sum over nodes no entry is negative, so the normalisation gap remains;
    - all terms of R of an order above one come from h, the loss, alone.

    The embedding network is trained through z, as Manifold Mixup trains the layers below.

    Args:
        num_classes: Number of logits.
        in_channels: Length of a node's feature vector.
        width: Hidden units, those of every layer.
        bias: Whether the linear layers, of the perceptrons and of the head, have biases. The batch
            norms keep their shifts either way: all of them lie below the embedding.

    Raises:
        InputError: If torch_geometric is not installed.
    """

    def __init__(
        self, *, num_classes: int = 2, in_channels: int = 1, width: int = 64, bias: bool = True
    ):
        super().__init__()
        widths = (in_channels, *(width,) * (LAYERS - 1))
        convolution = _torch_geometric().GINConv
        self.convolutions = nn.ModuleList(
            convolution(_perceptron(before, after, bias)) for before, after in pairwise(widths)
        )
        self.head: Readout = Readout(widths, num_classes, bias)

    def embed(self, graphs: Graphs) -> Float[Tensor, "graphs dim"]:
        """The graphs' embeddings z.

        Raises:
            InputError: If these are no graphs, or their nodes' vectors have another length.
        """
        expected = self.head.widths[0]
        if not isinstance(graphs, Graphs) or graphs.features.shape[1] != expected:
            raise InputError(
                f"this gin takes graphs with vectors of length {expected} at the nodes, not an "
                f"input of shape {tuple(graphs.shape)}: name another data set or another model"
            )
        layer = _torch_geometric()
        pool = layer.global_mean_pool if graphs.pooling == "mean" else layer.global_add_pool
        layers = [graphs.features]
        for convolution in self.convolutions:
            layers.append(convolution(layers[-1], graphs.edge_index))
        return torch.cat([pool(h, graphs.graph_of_node, len(graphs)) for h in layers], 1)


def _torch_geometric() -> Any:
    """Its layers, on demand: the import takes seconds, and only graphs need it."""
    try:
        import torch_geometric.nn
    except ModuleNotFoundError as error:
        raise InputError(
            f"gin needs {error.name}, which is not installed: pip install torch_geometric"
        ) from error
    return torch_geometric.nn


def _perceptron(before: int, after: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, after, bias=bias),
        nn.BatchNorm1d(after),
        nn.ReLU(),
        nn.Linear(after, after, bias=bias),
        nn.BatchNorm1d(after),
        nn.ReLU(),
    )


class Readout(nn.Module):
    """The head: a linear readout of each layer's part of z, summed; one affine map of z.

    In training, dropout acts as in the published code: on each layer's scores, bias included, with
    probability 0.5 for every score of its own, before they are summed.

    Args:
        widths: Lengths of the parts of z.
        num_classes: Number of logits.
        bias: Whether each readout has a bias.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int, bias: bool = True):
        super().__init__()
        self.widths = widths
        self.layers = nn.ModuleList(nn.Linear(width, num_classes, bias=bias) for width in widths)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, z: Float[Tensor, "graphs dim"]) -> Float[Tensor, "graphs classes"]:
        """Logits."""
        starts = accumulate(self.widths, initial=0)
        parts = [z.narrow(1, *place) for place in zip(starts, self.widths, strict=False)]
        scores = [layer(part) for layer, part in zip(self.layers, parts, strict=True)]
        return reduce(torch.add, map(self.dropout, scores))
