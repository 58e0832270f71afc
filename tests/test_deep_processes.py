"""Two processes compute what one computes on the same batches."""

import pytest
import torch
from torch.multiprocessing import start_processes
from two_processes import STEPS, one_of_two, train_all

from deep.processes import (
    choose_device,
    gather,
    mean_over_processes,
    rank,
    wait_for_first,
    world_size,
)
from theory.errors import InputError


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of two processes, joined by gloo, each with half of every batch."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(one_of_two, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


def test_two_processes_train_as_one_on_the_same_batches(both):
    """Every objective, λ a batch and a sample, without batch norm and with frozen statistics.

    In float64: what two sums taken in another order may differ by, far below the 1e-5 asked for.
    """
    alone = train_all()
    distinct = set()
    for case, expected in alone.items():
        assert len(expected["losses"]) == STEPS
        for found in (results["trained"][case] for results in both):
            assert found["losses"] == pytest.approx(expected["losses"], rel=1e-9), case
            assert found["accuracies"] == pytest.approx(expected["accuracies"]), case
            torch.testing.assert_close(
                found["parameters"], expected["parameters"], rtol=1e-9, atol=1e-9, msg=case
            )
        distinct.add(round(expected["parameters"].norm().item(), 9))
    # No case is another one in disguise; λ means nothing to ERM.
    assert len(distinct) == len(alone) - 2


def test_rows_are_gathered_in_order_of_ranks_with_the_gradients_of_all(both):
    rows = torch.cat([torch.arange(6.0).reshape(3, 2) + 10 * number for number in range(2)])
    weights = torch.arange(12.0).reshape(6, 2)
    for number, found in enumerate(results["collectives"] for results in both):
        assert (found["rank"], found["world_size"]) == (number, 2)
        assert torch.equal(found["plain"], rows)
        assert torch.equal(found["gathered"], rows)
        assert torch.equal(found["gradient"], (1 + 3) * weights[3 * number : 3 * number + 3])


def test_means_over_processes_are_constants(both):
    for number, found in enumerate(results["collectives"] for results in both):
        assert found["mean"].tolist() == [1.5, 5.0]
        assert found["mean_is_constant"]
        assert found["value_is_kept"] == [1.0 + number, 5.0]


def test_work_of_the_first_process_reaches_all_as_does_its_refusal(both):
    for found in (results["collectives"] for results in both):
        assert found["first"] == "by 0"
        assert found["refused"] == "the first one refuses"


def test_one_process_alone_needs_no_others():
    x = torch.ones(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather(x) is x
    mean = mean_over_processes(x)
    assert torch.equal(mean, x)
    assert not mean.requires_grad
    assert wait_for_first(lambda: 7) == 7


def test_devices_are_chosen_by_name_or_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=f"--device {name} cannot be used .*: try cpu"):
            choose_device(name)
