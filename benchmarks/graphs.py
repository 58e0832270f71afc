"""What training GIN on ten folds of MUTAG and PROTEINS costs, over torch_geometric's tutorial way.

Optimiser steps on batches of 32, 64 hidden units, one thread, five steps of each fold a round. An
epoch of Table 6 is 50 such steps, whose ratio is this one. The data must lie in the folder that
`MIXUP_THEORY_DATA` names; without it they are downloaded.
"""

import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._graphs_tutorial import data_list, steps
from benchmarks.timing import emit, interleaved
from deep.data.graph_batches import Graphs
from deep.data.graphs import load_graphs
from deep.graph_training import GraphTraining, Schedule, initial
from deep.stacked import Method
from deep.tables.graphs import split

SETS = ("MUTAG", "PROTEINS")
STEPS = 5
TUTORIAL, ONE_BY_ONE, STACKED = "tutorial", "module by module", "stacked"


def main() -> None:
    """Prints the figures."""
    torch.set_num_threads(1)
    seconds: dict[str, dict[str, list[float]]] = {}
    note = f"ten folds, {STEPS} steps of 32 graphs each, one thread"
    for name in SETS:
        graphs, labels, _ = load_graphs(name, os.environ.get("MIXUP_THEORY_DATA"))
        parts = [fold.train for fold in split(labels)]
        seconds[name] = interleaved(_contestants(graphs, labels, parts), rounds=9)
        for contestant in (ONE_BY_ONE, STACKED):
            emit(f"GIN on {name}, {contestant}", seconds[name], contestant, TUTORIAL, None, note)
        emit(f"GIN on {name}, mixupe-paper", seconds[name], "mixupe-paper", STACKED, None, note)
    both = {
        contestant: [
            sum(pair) for pair in zip(*(seconds[name][contestant] for name in SETS), strict=True)
        ]
        for contestant in (TUTORIAL, STACKED)
    }
    emit(f"GIN on {' and '.join(SETS)}, stacked", both, STACKED, TUTORIAL, 0.5, note)


def _contestants(
    graphs: Graphs, labels: Tensor, parts: list[Tensor]
) -> dict[str, Callable[[], object]]:
    items = data_list(graphs, labels)
    tutorial = [steps([items[i] for i in part.tolist()], 2) for part in parts]
    modules = [_module_steps(graphs, labels, part, seed) for seed, part in enumerate(parts)]

    def stepper(method: Method) -> Callable[[], object]:
        schedule = Schedule(method=method, alpha=1.0, eta=0.001, steps=STEPS)
        return GraphTraining(graphs, labels, parts, range(len(parts)), schedule).epoch

    def all_folds(trainings: list[Iterator[float]]) -> Callable[[], object]:
        return lambda: [next(training) for training in trainings for _ in range(STEPS)]

    return {
        TUTORIAL: all_folds(tutorial),
        ONE_BY_ONE: all_folds(modules),
        STACKED: stepper("erm"),
        "mixupe-paper": stepper("mixupe-paper"),
    }


def _module_steps(graphs: Graphs, labels: Tensor, part: Tensor, seed: int) -> Iterator[float]:
    """Trains a GIN on batches gathered from the resident set, a step at a time."""
    model = initial(graphs, 2, 64, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    while True:
        chosen = part[torch.randperm(len(part))[:32]]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(graphs[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        yield loss.item()
