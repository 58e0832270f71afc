"""GIN against its layers written out, its symmetries, and what Mixup sees of it."""

import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from graph_cases import FEATURES, drawn_graphs, random_graphs, text_of
from torch import nn
from torch_geometric.nn import GINConv, global_add_pool, global_mean_pool

from deep.loop import Optimization, Training
from deep.mixup import Mixing
from deep.models import build_model, resolve_model
from deep.models.gin import Readout
from deep.objective import OBJECTIVES, OnEmbedding, build_objective
from deep.train import main
from theory.errors import InputError
from theory.first_order import first_order
from theory.network import evaluating

WIDTH, CLASSES = 8, 2


def gin(name="gin", seed=0):
    """A small GIN in float64 whose running statistics and shifts are not the initial ones."""
    torch.manual_seed(seed)
    model = build_model(name, num_classes=CLASSES, in_channels=FEATURES, width=WIDTH).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def targets_of(graphs):
    return torch.eye(CLASSES, dtype=torch.float64)[torch.arange(len(graphs)) % CLASSES]


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_forward_is_adjacency_times_features_layer_by_layer(pooling):
    """Dense matrices: h ← perceptron((A + I) h), every layer's nodes pooled by a matrix."""
    model, graphs = gin().eval(), random_graphs([5, 3, 7, 1], pooling)
    n = len(graphs.features)
    a = torch.zeros(n, n, dtype=torch.float64)
    a[tuple(graphs.edge_index)] = 1
    pool = F.one_hot(graphs.graph_of_node).double().T
    if pooling == "mean":
        pool /= pool.sum(1, keepdim=True)
    h, logits = graphs.features, 0
    for k in range(5):
        readout = model.head.layers[k]
        logits = logits + pool @ h @ readout.weight.T + readout.bias
        if k < 4:
            first, norm, _, second, last_norm, _ = model.convolutions[k].nn
            h = (a + torch.eye(n)) @ h
            for linear, own in ((first, norm), (second, last_norm)):
                h = h @ linear.weight.T + linear.bias
                h = (h - own.running_mean) / (own.running_var + own.eps).sqrt()
                h = (h * own.weight + own.bias).relu()
    torch.testing.assert_close(model(graphs), logits, rtol=1e-10, atol=1e-10)


def test_layers_are_torch_geometrics_own():
    model, graphs = gin(), random_graphs([5, 3])
    assert all(isinstance(layer, GINConv) for layer in model.convolutions)
    h = GINConv(model.convolutions[0].nn)(graphs.features, graphs.edge_index)
    z = model.embed(graphs)
    part = slice(FEATURES, FEATURES + WIDTH)
    torch.testing.assert_close(z[:, part], global_add_pool(h, graphs.graph_of_node))
    z = model.embed(replace(graphs, pooling="mean"))
    torch.testing.assert_close(z[:, part], global_mean_pool(h, graphs.graph_of_node))


def test_order_of_nodes_and_of_graphs_does_not_matter():
    model, graphs = gin().eval(), random_graphs([5, 3, 7])
    order = torch.cat([torch.randperm(5), 5 + torch.randperm(3), 8 + torch.randperm(7)])
    new_number = order.argsort()
    edges = new_number[graphs.edge_index]
    permuted = replace(graphs, features=graphs.features[order], edge_index=edges)
    torch.testing.assert_close(model(permuted), model(graphs), rtol=1e-10, atol=1e-12)
    turned = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(graphs[turned]), model(graphs)[turned], rtol=1e-10, atol=1e-12)


def test_a_batch_is_its_single_graphs_in_evaluation():
    model, graphs = gin().eval(), random_graphs([5, 3, 7, 2])
    single = [model(graphs[torch.tensor([i])]) for i in range(4)]
    torch.testing.assert_close(model(graphs), torch.cat(single), rtol=1e-10, atol=1e-12)


def test_published_network_has_its_parameters_and_bias_free_those_without_biases():
    """Four perceptrons of two layers with two norms, five readouts; width 64, 7 tags (MUTAG)."""

    def count(name):
        model = build_model(name, num_classes=2, in_channels=7)
        return sum(p.numel() for p in model.parameters())

    weights = 7 * 64 + 7 * 64 * 64 + (7 + 4 * 64) * 2
    norms = 8 * 2 * 64
    assert count("gin-bias-free") == weights + norms
    assert count("gin") == weights + norms + 8 * 64 + 5 * 2


def test_dropout_acts_on_each_parts_scores_alone():
    """In training each score of each part is dropped, or doubled, by a chance of its own."""
    torch.manual_seed(0)
    head = Readout((1,) * 5, 2).double()
    for k, layer in enumerate(head.layers):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 10.0**k)
    z = torch.zeros(2000, 5, dtype=torch.float64)
    logits = head(z)
    kept = torch.stack([(logits / 10**k).floor() % 10 for k in range(5)])
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept / 2).mean((1, 2)).sub(0.5).abs().max() < 0.05
    assert torch.corrcoef((kept / 2).reshape(5, -1)).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(head.eval()(z), torch.full_like(logits, 11111.0))


@pytest.mark.parametrize("name", ["gin", "gin-bias-free"])
def test_head_is_affine_so_the_homogeneity_gap_is_the_bias_alone(name):
    """q − q̂ = (g − y)ᵀ W z̄ + (g − y)ᵀ b, with W and b read off the readouts."""
    model, graphs = gin(name).eval(), random_graphs([4] * 6)
    z, y = model.embed(graphs).detach(), targets_of(graphs)
    with evaluating(model.head) as f:
        terms = first_order(f, z, y, z.mean(0))
    w = torch.cat([layer.weight for layer in model.head.layers], 1)
    b = sum((layer.bias for layer in model.head.layers if layer.bias is not None), torch.zeros(2))
    residual = (z @ w.T + b).softmax(1) - y
    gap = residual @ b.to(z.dtype)
    torch.testing.assert_close(terms.homogeneity_gap, gap, rtol=1e-9, atol=1e-12)
    assert (terms.homogeneity_gap.abs().max() < 1e-12) == (name == "gin-bias-free")
    expected = (residual * ((z.mean(0) - z) @ w.T)).sum(1)
    torch.testing.assert_close(terms.q, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_on_embeddings(name):
    """Each is the formula on W z + b with mixed z, and trains the network below the head."""
    model, graphs = gin(), random_graphs([4, 5, 3, 6, 4, 5])
    y = targets_of(graphs)
    if name == "manifold_mixup":
        with pytest.raises(InputError, match="Readout does not say where"):
            build_objective(name, model, generator=torch.Generator())
        return
    objective = build_objective(name, model, eta=0.5, generator=torch.Generator().manual_seed(0))
    assert isinstance(objective, OnEmbedding)
    model.head.dropout.p = 0.0
    mixing = Mixing(0.3, torch.tensor([3, 5, 0, 1, 2, 4]))
    objective.objective.draw = lambda x: mixing
    value = objective(graphs, y)

    z = model.embed(graphs)
    w = torch.cat([layer.weight for layer in model.head.layers], 1)
    b = sum(layer.bias for layer in model.head.layers)

    def risk(z, y):
        logits = z @ w.T + b
        return (logits.logsumexp(1) - (y * logits).sum(1)).mean()

    residual = (z @ w.T + b).softmax(1) - y
    if name.startswith("mixupe") and name[-1] not in "12":
        q_hat = -(residual * (z @ w.T + b)).sum(1)
        q = (residual * ((z.mean(0).detach() - z) @ w.T)).sum(1)
        penalty = {
            "mixupe-paper": q_hat.abs().mean(),
            "mixupe-exact": q.abs().mean(),
            "mixupe-official-v3": -torch.where(q_hat >= 1, 0.0, q_hat).mean(),
            "mixupe-official-v4": -(-(residual.detach() * (z @ w.T + b)).sum(1)).mean(),
        }[name]
        mixed = risk(mixing(z), mixing(y))
        total = mixed + 0.5 / 3 * penalty  # E[a] = 1/3 for α = 1
        expected = (mixed / total).abs().detach() * total
    elif name in ("erm", "mixup"):
        expected = risk(z, y) if name == "erm" else risk(mixing(z), mixing(y))
    else:
        expected = value
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    below = list(model.convolutions.parameters())
    found = torch.autograd.grad(value, below, allow_unused=True, retain_graph=True)
    truth = torch.autograd.grad(expected, below, allow_unused=True)
    assert max(g.abs().max() for g in found) > 1e-3
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_the_loop_trains_on_graphs_and_can_be_taken_up_again():
    graphs = random_graphs([3, 4, 5, 6] * 5)
    y = targets_of(graphs)

    def training():
        model = gin()
        objective = build_objective("mixup", model, generator=torch.Generator().manual_seed(1))
        settings = Optimization(epochs=4, batch_size=6, lr=0.01)
        generator = torch.Generator().manual_seed(2)
        return model, Training(objective, graphs, y, settings, generator=generator)

    torch.manual_seed(0)
    model, whole = training()
    losses = []
    for step in whole:
        losses.append(step.loss)
        if step.index == 4:
            state, weights = deepcopy((whole.state_dict(), model.state_dict()))
    other, resumed = training()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [step.loss for step in resumed] == losses[5:]
    assert 0 <= float(whole.objective.accuracy) <= 1


def test_graphs_with_infinite_features_are_refused():
    graphs = random_graphs([3, 4, 5])
    graphs.features[1, 0] = torch.inf
    objective = build_objective("erm", gin(), generator=torch.Generator())
    with pytest.raises(InputError, match="NaN or infinity"):
        Training(objective, graphs, targets_of(graphs), Optimization(), generator=torch.Generator())


def test_other_inputs_are_refused_by_what_the_network_takes():
    model = resolve_model("gin", num_classes=2, in_channels=FEATURES, image_size=1)
    other = replace(random_graphs([3, 4]), features=torch.zeros(7, 5))
    with pytest.raises(InputError, match=r"vectors of length 3 at the nodes, not .*\(2, 5\)"):
        model(other)
    with pytest.raises(InputError, match=r"cannot take|takes graphs"), evaluating(model) as f:
        f(torch.zeros(2, 3, 32, 32))


def test_the_training_command_refuses_graphs_and_says_what_takes_them(tmp_path, capsys):
    (tmp_path / "MUTAG.txt").write_text(text_of(drawn_graphs()))
    flags = ["--model", "gin", "--out", str(tmp_path / "out")]
    assert main([*flags, "--data", "MUTAG", "--data-dir", str(tmp_path)]) == 2
    assert "python -m deep.table 6" in capsys.readouterr().err
    assert main([*flags, "--data", "digits"]) == 2
    assert "error: " in (message := capsys.readouterr().err)
    assert message.count("\n") == 1


def test_without_torch_geometric_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(InputError, match="pip install torch_geometric"):
        build_model("gin")
