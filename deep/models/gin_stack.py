"""Many GINs trained at once, each on graphs of its own.

Their weights lie in one tensor a layer, their graphs side by side in one large graph, so that
gathering a batch, adding up neighbours, reading out and the optimiser's step are one operation for
all. Only products with weights and batch norms go network by network: a network's rows stay in the
processor's cache there, whereas padding to equal numbers of nodes for `baddbmm` adds rows, and an
elementwise pass over all networks' rows takes three times as long for each.

The gradient is written out, which is faster than autograd's. What a network computes is what
`deep.models.gin.GIN` would alone, but that the biases before batch norms are left out: the norm
takes them off again, their gradient is zero, and only round-off would move them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deep.data.graph_batches import Graphs, gathered
from deep.models.gin import GIN

# What autograd calls, into tensors that are there.
_NORM = torch.ops.aten.native_batch_norm.out
_NORM_GRADIENT = torch.ops.aten.native_batch_norm_backward
_RELU_GRADIENT = torch.ops.aten.threshold_backward.grad_input
_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Batch:
    """Graphs of several networks side by side, network after network.

    Attributes:
        inputs: Each node's vector and its neighbours', added up: what the first layer is given.
        pooled: Each graph's vectors, pooled.
        neighbours: Each node and its neighbours, node after node.
        starts: Where each node's begin in `neighbours`, and their number.
        nodes: Where each graph's nodes begin, and their number.
        graph_of_node: Number of the graph that each node belongs to.
        scale: What a graph's sum is multiplied by, 1 or one over its number of nodes.
        nodes_of: Number of nodes of each network.
        graphs_of: Number of graphs of each network.
    """

    inputs: Float[Tensor, "nodes features"]
    pooled: Float[Tensor, "graphs features"]
    neighbours: Int64[Tensor, " entries"]
    starts: Int64[Tensor, " nodes_and_one"]
    nodes: Int64[Tensor, " graphs_and_one"]
    graph_of_node: Int64[Tensor, " nodes"]
    scale: Float[Tensor, "graphs 1"]
    nodes_of: list[int]
    graphs_of: list[int]


class Neighbourhoods:
    """All graphs of a set, prepared so that batches of them are gathered quickly.

    Args:
        graphs: The set.
    """

    def __init__(self, graphs: Graphs):
        n = len(graphs.features)
        itself = torch.arange(n)
        start, end = torch.cat([graphs.edge_index, itself.expand(2, n)], 1)
        order = (start * n + end).argsort()
        self._neighbours = end[order]
        self._starts = _pointers(start.bincount(minlength=n))
        self._entries = self._starts[graphs.nodes]
        self._nodes = graphs.nodes
        self._scale = torch.ones(len(graphs), 1, dtype=graphs.dtype)
        if graphs.pooling == "mean":
            self._scale /= graphs.nodes.diff()[:, None]
        self._inputs = _sums(graphs.features, self._neighbours, self._starts)
        self._pooled = _sums(graphs.features, itself, graphs.nodes) * self._scale

    def batch(self, chosen: Sequence[Int64[Tensor, " _"]]) -> Batch:
        """The graphs of these numbers, some for each network."""
        of_all = torch.cat(list(chosen))
        node, nodes, shift = gathered(self._nodes, of_all)
        entry, entries, _ = gathered(self._entries, of_all)
        graph = torch.arange(len(of_all))
        sizes = [len(numbers) for numbers in chosen]
        return Batch(
            inputs=self._inputs[node],
            pooled=self._pooled[of_all],
            neighbours=self._neighbours[entry] - shift.repeat_interleave(entries.diff()),
            starts=_pointers(self._starts.diff()[node]),
            nodes=nodes,
            graph_of_node=graph.repeat_interleave(nodes.diff()),
            scale=self._scale[of_all],
            nodes_of=nodes[_pointers(torch.tensor(sizes))].diff().tolist(),
            graphs_of=sizes,
        )


def _pointers(sizes: Int64[Tensor, " groups"]) -> Int64[Tensor, " groups_and_one"]:
    return F.pad(sizes.cumsum(0), (1, 0))


def _sums(
    rows: Float[Tensor, "rows width"],
    numbers: Int64[Tensor, " entries"],
    starts: Int64[Tensor, " groups_and_one"],
) -> Float[Tensor, "groups width"]:
    """Sums of the rows with these numbers, those from `starts[i]` to `starts[i + 1]` together."""
    return F.embedding_bag(numbers, rows, starts, mode="sum", include_last_offset=True)


class _Dense:
    """max(0, norm(xW)) with a weight and a batch norm of each network.

    A linear layer's bias is only part of what the norm subtracts, and so of its running mean here.

    Args:
        linears: A layer of each network.
        norms: The batch norm behind it.
    """

    def __init__(self, linears: Sequence[Any], norms: Sequence[Any]):
        self.weight = stacked([layer.weight.T for layer in linears])
        self.scale = stacked([norm.weight for norm in norms])
        self.shift = stacked([norm.bias for norm in norms])
        self.running = [stacked([getattr(norm, name) for norm in norms]) for name in _RUNNING]
        self.running[0] -= stacked([layer.bias for layer in linears])
        self.momentum, self.eps = norms[0].momentum, norms[0].eps
        self.parameters = [self.weight, self.scale, self.shift]
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def forward(self, x: Tensor, sizes: list[int], training: bool) -> Float[Tensor, "nodes width"]:
        """The layer's output on the rows of each network, `sizes[r]` of the r-th."""
        before = x.new_empty(len(x), self.weight.shape[2])
        after = torch.empty_like(before)
        mean, deviation = (torch.empty_like(t) for t in self.running)
        rows = zip(*(t.split(sizes) for t in (x, before, after)), strict=True)
        own = (self.weight, self.scale, self.shift, *self.running, mean, deviation)
        for (x_r, before_r, after_r), (weight, *norm, mean_r, deviation_r) in zip(
            rows, zip(*own, strict=True), strict=True
        ):
            torch.mm(x_r, weight, out=before_r)
            _NORM(
                before_r, *norm, training, self.momentum, self.eps,
                out=after_r, save_mean=mean_r, save_invstd=deviation_r,
            )  # fmt: skip
            after_r.relu_()
        if training:
            self._given = (x, before, after), (mean, deviation)
        return after

    def backward(self, gradient: Tensor, sizes: list[int], below: Tensor | None) -> None:
        """Sets the parameters' gradients from that of the last output.

        Args:
            gradient: Of the last output; overwritten.
            sizes: As in `forward`.
            below: Where to write the gradient of the last input; None if it is not wanted.
        """
        (x, before, after), moments = self._given
        weight_gradient, *norm_gradients = self.gradients
        of_norms = []
        rows = zip(
            x.T.split(sizes, 1),
            *(t.split(sizes) for t in (gradient, before, after)),
            [None] * len(sizes) if below is None else below.split(sizes),
            strict=True,
        )
        own = (self.weight.mT, weight_gradient, self.scale, *moments)
        for (x_t, gradient_r, before_r, after_r, below_r), (weight_t, out, *norm) in zip(
            rows, zip(*own, strict=True), strict=True
        ):
            scale, *moments_r = norm
            _RELU_GRADIENT(gradient_r, after_r, 0, grad_input=gradient_r)
            at_product, *of_norm = _NORM_GRADIENT(
                gradient_r, before_r, scale, None, None, *moments_r, True, self.eps,
                [True, True, True],
            )  # fmt: skip
            of_norms.append(of_norm)
            torch.mm(x_t, at_product, out=out)
            if below_r is not None:
                torch.mm(at_product, weight_t, out=below_r)
        for norm_gradient, of_networks in zip(
            norm_gradients, zip(*of_norms, strict=True), strict=True
        ):
            torch.stack(of_networks, out=norm_gradient)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Copies of tensors of one shape along a new first axis, without a graph."""
    return torch.stack([tensor.detach() for tensor in tensors])


class GINStack:
    """GINs as `deep.models.gin.GIN`, with biases, the parameters of a layer in one tensor.

    Args:
        networks: The GINs, of one shape; their parameters and running statistics are copied.

    Attributes:
        layers: The two dense layers of each convolution, one after the other.
        readouts: Weight and bias of the head for each part of the embedding.
        widths: Lengths of the parts.
    """

    def __init__(self, networks: Sequence[GIN]):
        self.widths = networks[0].head.widths
        perceptrons: list[list[Any]] = [
            [convolution.nn for convolution in of_networks]
            for of_networks in zip(*(network.convolutions for network in networks), strict=True)
        ]
        self.layers = [
            _Dense([p[j] for p in of_networks], [p[j + 1] for p in of_networks])
            for of_networks in perceptrons
            for j in (0, 3)
        ]
        heads: list[Any] = list(zip(*(network.head.layers for network in networks), strict=True))
        self.readouts = [
            (
                stacked([layer.weight.T for layer in part]).requires_grad_(),
                stacked([layer.bias[None] for layer in part]).requires_grad_(),
            )
            for part in heads
        ]

    @property
    def parameters(self) -> list[Tensor]:
        """All that the optimiser moves."""
        of_layers = [p for layer in self.layers for p in layer.parameters]
        return of_layers + self.readout_parameters

    @property
    def readout_parameters(self) -> list[Tensor]:
        """Those of the head, whose gradients are autograd's."""
        return [p for readout in self.readouts for p in readout]

    @torch.no_grad()
    def embed(self, batch: Batch, *, training: bool) -> Float[Tensor, "networks graphs dim"]:
        """Embeddings of each network's graphs, with rows of zeros behind those of the fewer."""
        h, parts = batch.inputs, [batch.pooled]
        for k in range(0, len(self.layers), 2):
            if k:
                h = _sums(h, batch.neighbours, batch.starts)
            for layer in self.layers[k : k + 2]:
                h = layer.forward(h, batch.nodes_of, training)
            parts.append(_sums(h, torch.arange(len(h)), batch.nodes) * batch.scale)
        return pad_sequence(list(torch.cat(parts, 1).split(batch.graphs_of)), batch_first=True)

    @torch.no_grad()
    def backward(self, batch: Batch, gradient: Float[Tensor, "networks graphs dim"]) -> None:
        """Sets the layers' gradients from that of the last embeddings, of as many graphs each."""
        of_parts = (gradient.flatten(0, 1) * batch.scale).split(self.widths, 1)
        of_nodes = [part.contiguous()[batch.graph_of_node] for part in of_parts[1:]]
        flow = of_nodes[-1]
        for k in range(len(self.layers) - 2, -1, -2):
            between = torch.empty_like(flow)
            self.layers[k + 1].backward(flow, batch.nodes_of, between)
            self.layers[k].backward(between, batch.nodes_of, flow if k else None)
            if k:  # neighbours are mutual: the gradient of their sums is the sum of gradients
                flow = _sums(flow, batch.neighbours, batch.starts).add_(of_nodes[k // 2 - 1])

    def scores(
        self, z: Float[Tensor, "networks graphs dim"], *, bias: bool = True
    ) -> Float[Tensor, "parts networks graphs classes"]:
        """What each part of an embedding adds to the logits; without bias, to their tangents."""
        parts = zip(z.split(self.widths, 2), self.readouts, strict=True)
        return torch.stack([part @ w + b if bias else part @ w for part, (w, b) in parts])
