"""Checkpoints come back as they were saved, whole or not at all, and are never more than kept."""

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from deep.resume import Checkpoints
from theory.errors import InputError


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


STATE = {"index": 7, "rng": torch.get_rng_state(), "sums": {"loss": 0.1 + 0.2}, "list": [1, None]}


def no_warning(line):
    raise AssertionError(line)


def test_weights_and_state_come_back_bit_for_bit(tmp_path):
    saved, loaded = network(0), network(1)
    saved(torch.randn(5, 4))
    Checkpoints(tmp_path / "c").save(7, saved, STATE)
    state = Checkpoints(tmp_path / "c").load(loaded, no_warning)
    assert state.keys() == STATE.keys()
    assert torch.equal(state["rng"], STATE["rng"])
    assert state["sums"]["loss"] == STATE["sums"]["loss"]
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 9, 10, 100):  # not in the order of their names
        checkpoints.save(step, network(step), {"index": step})
    assert checkpoints.steps() == [10, 100]
    assert checkpoints.load(network(0), no_warning)["index"] == 100
    checkpoints.remove()
    assert checkpoints.load(network(0), no_warning) is None


def test_what_a_killed_process_left_is_swept_away_and_a_damaged_one_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".3").mkdir()
    (tmp_path / "4").mkdir()
    assert checkpoints.steps() == [4]
    checkpoints.save(4, network(0), {"index": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4"]
    assert checkpoints.load(network(1), no_warning) == {"index": 4}


def test_a_damaged_newer_one_does_not_outlive_what_is_saved_after_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (100, 200):
        checkpoints.save(step, network(step), {"index": step})
    (tmp_path / "200" / "state.pt").write_bytes(b"nothing")
    checkpoints = Checkpoints(tmp_path, keep=1)
    warned = []
    assert checkpoints.load(network(0), warned.append) == {"index": 100}
    assert len(warned) == 1
    checkpoints.save(110, network(110), {"index": 110})
    assert checkpoints.steps() == [110]
    assert checkpoints.load(network(0), no_warning) == {"index": 110}


@pytest.mark.parametrize("method", ["write_bytes", "write_text", "rename"])
def test_a_full_disk_leaves_the_older_ones(tmp_path, monkeypatch, method):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, network(0), {"index": 1})

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full)
        with pytest.raises(InputError, match=r"No space left.*the one of step 1 is kept\): free"):
            checkpoints.save(2, network(1), {"index": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert checkpoints.load(network(1), no_warning) == {"index": 1}


def test_a_state_that_could_run_code_is_not_loaded(tmp_path):
    class Unsafe:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    Checkpoints(tmp_path / "c").save(1, network(0), {"object": Unsafe()})
    warned = []
    with pytest.raises(InputError, match="none of the 1 checkpoints"):
        Checkpoints(tmp_path / "c").load(network(1), warned.append)
    assert "holds Python objects other than tensors" in warned[0]
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_passed_over_and_leave_the_model(tmp_path):
    Checkpoints(tmp_path).save(1, nn.Linear(4, 3), {"index": 1})
    model = network(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    warned = []
    with pytest.raises(InputError, match="none of the 1 checkpoints"):
        Checkpoints(tmp_path).load(model, warned.append)
    assert "is of another model" in warned[0]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
