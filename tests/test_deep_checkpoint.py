"""Weights survive the way through a file, and nothing but sound weights comes back from one."""

import random
from collections import OrderedDict

import pytest
import torch
from torch import nn

from deep.checkpoint import load_weights, save_weights
from deep.models import build_model
from theory.errors import InputError


def network(seed=0, **options):
    torch.manual_seed(seed)
    return build_model("preact18", width=2, num_classes=4, **options)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture
def saved(tmp_path):
    """A network with batch-norm statistics of its own, and its file."""
    model = network(1)
    model(torch.randn(8, 3, 8, 8))
    path = tmp_path / "weights.safetensors"
    save_weights(model, path)
    return model, path


def refused(model, path, message):
    """Asserts that loading fails with one line that matches, and leaves the model as it was."""
    before = snapshot(model)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert_same(before, snapshot(model))


def test_round_trip_is_exact_and_leaves_one_file(saved):
    model, path = saved
    other = network(2)
    load_weights(other, path)
    assert_same(snapshot(other), snapshot(model))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tied_weights_survive(tmp_path):
    """safetensors itself refuses tensors that share memory."""
    tied, other = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    tied[1].weight = tied[0].weight
    save_weights(tied, tmp_path / "tied")
    load_weights(other, tmp_path / "tied")
    assert_same(snapshot(other), snapshot(tied))


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda d: {"state_dict": d, "epoch": 3},
                                  lambda d: {"model": d, "optimizer": {}}])  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_read(saved, tmp_path, wrap, prefix, zipped):
    model, _ = saved
    path = tmp_path / "weights.pt"
    named = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(wrap(named), path, _use_new_zipfile_serialization=zipped)
    other = network(2)
    load_weights(other, path)
    assert_same(snapshot(other), snapshot(model))


def test_prefix_stays_where_the_model_has_it_too(saved, tmp_path):
    wrapped = nn.Sequential(OrderedDict(module=saved[0]))
    save_weights(wrapped, tmp_path / "wrapped")
    other = nn.Sequential(OrderedDict(module=network(2)))
    load_weights(other, tmp_path / "wrapped")
    assert_same(snapshot(other), snapshot(wrapped))


def test_weights_take_the_models_type(saved):
    model, path = saved
    other = network(2).double()
    load_weights(other, path)
    assert other.linear.weight.dtype == torch.float64
    assert torch.equal(other.linear.weight.float(), model.linear.weight)


def test_failed_save_leaves_the_old_file(saved, monkeypatch):
    _, path = saved
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("theory.record.Path.replace", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_weights(network(2), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_save_refuses_unwritable_places(saved):
    model, path = saved
    with pytest.raises(InputError, match="cannot write"):
        save_weights(model, path / "file-as-folder")


def test_save_makes_the_folder(saved, tmp_path):
    model, _ = saved
    save_weights(model, tmp_path / "new" / "folder" / "weights")
    other = network(3)
    load_weights(other, tmp_path / "new" / "folder" / "weights")
    assert_same(snapshot(other), snapshot(model))


def test_missing_file_and_folder_are_refused(tmp_path):
    refused(network(), tmp_path / "gone.pt", "does not exist")
    refused(network(), tmp_path, "cannot read checkpoint")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "old.pt"])
def test_truncated_files_are_refused_at_every_length(saved, tmp_path, suffix):
    model, path = saved
    if suffix != "safetensors":
        path = tmp_path / suffix
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=suffix == "pt")
    whole = path.read_bytes()
    lengths = [0, 1, 8, 9, 100, *random.Random(0).sample(range(len(whole)), 20), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        refused(network(), path, "truncated or corrupt|damaged")


def test_files_of_other_kinds_are_refused(tmp_path):
    for content in (b"hello, I am a text", b"PK\x03\x04 but no archive", b"\x80\x02 no pickle"):
        (tmp_path / "x").write_bytes(content)
        refused(network(), tmp_path / "x", "corrupt|damaged")


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_file_is_never_run(tmp_path):
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    refused(network(), tmp_path / "bomb.pt", "Python objects other than tensors")
    torch.save(network(), tmp_path / "whole-model.pt")
    refused(network(), tmp_path / "whole-model.pt", "Python objects other than tensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no weights but list"),
        ({}, "holds no weights but dict"),
        (torch.zeros(3), "holds no weights but Tensor"),
        ({"epoch": 3}, "entry 'epoch' is int"),
        ({0: torch.zeros(3)}, "entry 0 is Tensor"),
        ({"linear.weight": torch.eye(3).to_sparse()}, "no dense tensor"),
    ],
)
def test_content_that_is_no_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    refused(network(), tmp_path / "x.pt", message)


def save_changed(model, path, **changes):
    """Saves the state dict with some entries replaced, or left out where the change is None."""
    state = {**model.state_dict(), **changes}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    save_changed(network(), path, **{"stem.weight": None, "extra": torch.zeros(1)})
    refused(network(), path, r"1 missing \('stem.weight'\) and 1 unexpected \('extra'\)")
    save_weights(build_model("mlp", width=3), path)
    refused(network(), path, r"missing \('stem.weight', .*, …\) and 6 unexpected")
    save_changed(network(), path, **{"line\nbreak": torch.zeros(1)})
    refused(network(), path, "1 unexpected")


def test_weights_of_other_shapes_are_refused(saved):
    _, path = saved
    model = build_model("preact18", width=2, num_classes=5)
    refused(model, path, r"linear.weight has shape \(4, 16\), the model's has \(5, 16\) \(2 differ")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    weight = network().linear.weight.detach().clone()
    weight[1, 2] = bad
    save_changed(network(), tmp_path / "x.pt", **{"linear.weight": weight})
    refused(network(), tmp_path / "x.pt", "linear.weight holds NaN or infinity")


def masked():
    """A network with a causal mask, which is a buffer of zeros and -inf."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))
    return model


def test_an_infinity_that_is_the_models_own_constant_is_read(tmp_path):
    path = tmp_path / "x.pt"
    model = masked()
    save_weights(model, path)
    other = masked()
    load_weights(other, path)
    assert_same(snapshot(model), snapshot(other))
    for value in (float("inf"), float("nan")):  # of another sign than the model's, and no number
        save_changed(model, path, mask=model.mask.masked_fill(model.mask != 0, value))
        refused(masked(), path, "mask holds NaN or infinity")
    save_changed(model, path, mask=torch.full((3, 3), -float("inf")))  # where the model has 0
    refused(masked(), path, "mask holds NaN or infinity")


def test_weights_that_overflow_or_lose_a_part_in_the_models_type_are_refused(tmp_path):
    bias = torch.full((4,), 1e6)
    save_changed(network(), tmp_path / "x.pt", **{"linear.bias": bias})
    refused(network().half(), tmp_path / "x.pt", "linear.bias holds NaN or infinity")
    save_changed(network(), tmp_path / "x.pt", **{"linear.bias": bias.to(torch.complex64)})
    refused(network(), tmp_path / "x.pt", "does not convert")
