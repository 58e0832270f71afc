"""Synchronised batch norm is PyTorch's on the whole batch; test_deep_processes trains it."""

import pytest
import torch
from torch import nn

import deep.batch_norm
from deep.batch_norm import SyncBatchNorm, synchronize_batch_norm


def images(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (5 + 2 * torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=generator)).to(dtype)


def randomized(momentum=0.1, affine=True):
    layer = nn.BatchNorm2d(3, momentum=momentum, affine=affine).double()
    if affine:
        nn.init.uniform_(layer.weight, 0.5, 2.0)
        nn.init.uniform_(layer.bias, -1.0, 1.0)
    return layer


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_a_share_is_normalised_as_pytorch_normalises_it_in_the_whole_batch(
    monkeypatch, momentum, affine
):
    """The statistics of the other process's share are computed here."""
    torch.manual_seed(0)
    whole = randomized(momentum, affine)
    layer = SyncBatchNorm(3, momentum=momentum, affine=affine).double()
    layer.load_state_dict(whole.state_dict())
    monkeypatch.setattr(deep.batch_norm, "world_size", lambda: 2)
    for seed in range(3):
        x = images(seed)
        other = torch.stack([x[:4].var((0, 2, 3), correction=0), x[:4].mean((0, 2, 3))])
        monkeypatch.setattr(
            deep.batch_norm, "gather", lambda mine, other=other: torch.cat([other[None], mine])
        )
        torch.testing.assert_close(layer(x[4:]), whole(x)[4:], rtol=1e-12, atol=1e-12)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(dict(layer.named_buffers())[name], buffer)


def test_low_precision_inputs_keep_their_type_and_exact_statistics(monkeypatch):
    layer = SyncBatchNorm(3)
    monkeypatch.setattr(deep.batch_norm, "world_size", lambda: 2)
    monkeypatch.setattr(deep.batch_norm, "gather", lambda mine: mine.expand(2, -1, -1))
    x = images(dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = nn.functional.batch_norm(x.float(), None, None, training=True)
    torch.testing.assert_close(y, expected.bfloat16())
    torch.testing.assert_close(layer.running_mean, 0.1 * x.float().mean((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_one_process_alone_has_pytorchs_layer(training):
    torch.manual_seed(0)
    layer = randomized().train(training)
    layer.running_mean.fill_(0.3)
    expected = layer(images())
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.running_mean.fill_(0.3)
    layer.running_var.fill_(1.0)
    assert torch.equal(synchronize_batch_norm(layer)(images()), expected)
    assert torch.equal(layer.running_var, state["running_var"])


def test_conversion_keeps_the_layers_themselves_and_users_own_classes():
    class Own(nn.BatchNorm1d):
        pass

    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Sequential(nn.BatchNorm1d(4), Own(4)), nn.GroupNorm(1, 3))
    state, parameters = model.state_dict(), list(model.parameters())
    assert synchronize_batch_norm(model) is model
    assert model[0] is norm
    assert [type(model[0]), type(model[1][0])] == [SyncBatchNorm, SyncBatchNorm]
    assert type(model[1][1]) is Own
    assert list(model.state_dict()) == list(state)
    for mine, before in zip(model.parameters(), parameters, strict=True):
        assert mine is before
