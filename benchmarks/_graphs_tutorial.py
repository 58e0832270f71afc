"""The yardstick of `benchmarks.graphs`: GIN as torch_geometric's tutorials write it, fold by fold.

Data objects in a DataLoader, GINConv, global_add_pool, Adam; the same network and the same batches
of 32 as `deep.models.gin`, erm only.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, global_add_pool

from deep.data.graph_batches import Graphs


class TutorialGIN(nn.Module):
    """Four convolutions, and a readout of the input and of each."""

    def __init__(self, in_channels: int, hidden: int, num_classes: int):
        super().__init__()
        widths = [in_channels, hidden, hidden, hidden, hidden]
        self.convs = nn.ModuleList()
        for before, after in pairwise(widths):
            self.convs.append(
                GINConv(
                    nn.Sequential(
                        nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(),
                        nn.Linear(after, after), nn.BatchNorm1d(after), nn.ReLU(),
                    )
                )
            )  # fmt: skip
        self.readouts = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Logits of a batch of graphs."""
        out = F.dropout(self.readouts[0](global_add_pool(x, batch)), training=self.training)
        for conv, readout in zip(self.convs, self.readouts[1:], strict=True):
            x = conv(x, edge_index)
            out = out + F.dropout(readout(global_add_pool(x, batch)), training=self.training)
        return out


def data_list(graphs: Graphs, labels: Tensor) -> list[Data]:
    """The graphs one by one."""
    items = []
    for i in range(len(graphs)):
        one = graphs[torch.tensor([i])]
        items.append(Data(x=one.features, edge_index=one.edge_index, y=labels[i : i + 1]))
    return items


def steps(items: list[Data], num_classes: int) -> Iterator[float]:
    """Trains on these graphs without end; a step at a time."""
    model = TutorialGIN(items[0].x.shape[1], 64, num_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(items, batch_size=32, shuffle=True, drop_last=True)
    model.train()
    while True:
        for data in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.x, data.edge_index, data.batch), data.y)
            loss.backward()
            optimizer.step()
            yield loss.item()
