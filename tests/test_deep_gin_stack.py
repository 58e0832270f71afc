"""GINs trained together equal the module, its objective and Adam, one by one, on the same draws."""

from dataclasses import replace

import pytest
import torch
from graph_cases import random_graphs
from torch import Tensor, nn

from deep.graph_training import GraphTraining, Schedule, initial
from deep.mixup import Mixing
from deep.models.gin import GIN
from deep.models.gin_stack import GINStack
from deep.objective import build_objective
from theory.errors import InputError

METHODS = ("erm", "mixup", "mixupe-paper", "mixupe-official-v3", "mixupe-exact")
WIDTH, ETA = 8, 0.5
# Of different sizes, overlapping.
PARTS = [torch.arange(24), torch.arange(10, 40), torch.arange(5, 31)]


class Kept(nn.Module):
    """Dropout by masks that are given, also where values and tangents are in one batch."""

    def __init__(self):
        super().__init__()
        self.masks = iter(())

    def forward(self, x):
        if not self.training:
            return x
        mask = next(self.masks)
        mask = mask.repeat(len(x) // len(mask), 1)
        return (x.as_subclass(Tensor) * mask).as_subclass(type(x))


def problem(dtype, pooling):
    torch.manual_seed(0)
    graphs = random_graphs(torch.randint(2, 8, (40,)).tolist(), pooling)
    labels = torch.randint(0, 3, (40,))
    return replace(graphs, features=graphs.features.to(dtype)), labels


def training(graphs, labels, method, **options):
    schedule = Schedule(method=method, alpha=0.7, eta=ETA, batch_size=16, width=WIDTH, **options)
    return GraphTraining(graphs, labels, PARTS, [5, 6, 7], schedule)


def one_by_one(network, graphs, targets, method, mixing, masks):
    """The objective's value on a batch, with these draws."""
    objective = build_objective(method, network, alpha=0.7, eta=ETA, generator=torch.Generator())
    network.train().head.dropout.masks = iter(masks)
    objective.objective.draw = lambda x: mixing
    objective.objective._has_tangents = True  # which it would find out at the cost of masks
    return objective(graphs, targets)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [
    (torch.float64, 12, 1e-9), (torch.float32, 1, 1e-5),
])  # fmt: skip
def test_stacked_training_equals_modules_and_adam(dtype, steps, tolerance, method, pooling):
    """Values, parameters and running statistics after some steps, and what is predicted then."""
    graphs, labels = problem(dtype, pooling)
    together = training(graphs, labels, method, lr=0.003)
    networks = [initial(graphs, 3, WIDTH, seed) for seed in (5, 6, 7)]
    for network in networks:
        network.head.dropout = Kept()
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.003) for network in networks]
    targets = torch.eye(3, dtype=dtype)[labels]
    for _ in range(steps):
        chosen, draws = together.draw_batch(), together.draw()
        values = together.step(chosen, draws)
        for r, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
            mixing = Mixing(draws.lam[r].item(), draws.partner[r])
            masks = 2 * draws.kept[:, :, r].flatten(0, 1).to(dtype)
            own = chosen[r]
            value = one_by_one(network, graphs[own], targets[own], method, mixing, masks)
            torch.testing.assert_close(values[r], value.detach(), rtol=tolerance, atol=tolerance)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    expected = GINStack(networks)
    for mine, theirs in zip(together.stack.parameters, expected.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
    for layer, other in zip(together.stack.layers, expected.layers, strict=True):
        # Round-off moves the modules' biases before norms by up to lr, and not their means yet.
        slack = 1e-6 if dtype == torch.float64 else 0.004
        torch.testing.assert_close(layer.running, other.running, rtol=1e-5, atol=slack)
    wrong = together.evaluation(PARTS)()
    for network, part, mistakes in zip(networks, PARTS, wrong, strict=True):
        with torch.no_grad():
            logits = network.eval()(graphs[part])
        if dtype == torch.float64:
            assert torch.equal(logits.argmax(1) != labels[part], mistakes)


def test_what_a_network_does_depends_on_its_own_seed_and_graphs_alone():
    """Also its batches on nothing but the seed, whatever the method draws besides."""
    graphs, labels = problem(torch.float32, "sum")
    whole = training(graphs, labels, "mixup", steps=3)
    whole.epoch()
    alone = GraphTraining(graphs, labels, PARTS[1:2], [6], whole.schedule)
    alone.epoch()
    for all_of_them, own in zip(whole.stack.parameters, alone.stack.parameters, strict=True):
        torch.testing.assert_close(all_of_them[1], own[0], rtol=1e-4, atol=1e-5)
    other = training(graphs, labels, "erm", steps=3)
    other.epoch()
    for mine, theirs in zip(whole.draw_batch(), other.draw_batch(), strict=True):
        assert torch.equal(mine, theirs)


def test_batches_are_drawn_without_replacement_from_a_networks_own_graphs():
    graphs, labels = problem(torch.float32, "sum")
    trained = training(graphs, labels, "erm")
    seen = [set() for _ in PARTS]
    for _ in range(20):
        for numbers, part, so_far in zip(trained.draw_batch(), PARTS, seen, strict=True):
            assert len(numbers) == len(numbers.unique()) == 16
            assert set(numbers.tolist()) <= set(part.tolist())
            so_far |= set(numbers.tolist())
    assert [len(so_far) for so_far in seen] == [len(part) for part in PARTS]


def test_learning_rate_is_halved_every_50_epochs():
    graphs, labels = problem(torch.float32, "sum")
    trained = training(graphs, labels, "erm", steps=1)
    rates = []
    for _ in range(101):
        trained.epoch()
        rates.append(trained._optimizer.param_groups[0]["lr"])
    assert rates == [0.01] * 50 + [0.005] * 50 + [0.0025]


def test_initial_networks_leave_the_global_generator_alone_and_follow_the_seed():
    graphs, _ = problem(torch.float32, "sum")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (initial(graphs, 3, WIDTH, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    fresh = GIN(num_classes=3, in_channels=3, width=WIDTH)
    for pa, pb, pc, pf in zip(*(n.parameters() for n in (a, b, c, fresh)), strict=True):
        assert torch.equal(pa, pb)
        assert torch.equal(pa, pf)
        assert pa.ndim == 1 or not torch.equal(pa, pc)


def test_divergence_is_told():
    graphs, labels = problem(torch.float32, "sum")
    trained = training(graphs, labels, "erm", steps=9, lr=1e30)
    with pytest.raises(InputError, match="erm diverged in epoch 1"):
        trained.epoch()
