"""The notebook that trains by four objectives runs, in time, and its printed numbers add up."""

import re

import pytest
from run_notebook import run_notebook, unexplained_plots

OBJECTIVES = ["erm", "mixup", "mixupe-paper", "mixupe-exact"]
NUMBER = r"(\d\S*)"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return run_notebook("mixupe_training", tmp_path_factory.mktemp("notebook"))


def test_it_runs_in_time_with_its_figures(shown):
    assert shown.seconds < 360.0  # two minutes on two free cores, more where they are shared
    assert shown.images == 3
    assert unexplained_plots("mixupe_training") == (3, [])


def test_each_run_is_told_and_stands_in_the_table(shown):
    assert len(re.findall(r"^  epoch \d  objective", shown.text, re.MULTILINE)) == 4 * 5
    table = re.findall(r"^(\S+) +1 +(\d+\.\d\d) ", shown.text, re.MULTILINE)
    assert sorted(name for name, _ in table) == sorted(OBJECTIVES)
    assert all(float(error) < 50 for _, error in table)


def test_the_gaps_by_hand_are_all_of_the_error_and_obey_the_triangle_inequality(shown):
    pattern = (
        rf"^(\S+) +‖q‖ +{NUMBER} +‖q − q̂‖ +{NUMBER} +gaps +{NUMBER} and +{NUMBER} +what they "
        r"leave (\S+) of ‖q‖$"
    )
    rows = re.findall(pattern, shown.text, re.MULTILINE)
    assert [name for name, *_ in rows] == OBJECTIVES
    for _, *numbers in rows:
        size, error, one, other, left = map(float, numbers)
        assert size > 0
        assert abs(one - other) - 2e-3 <= error <= one + other + 2e-3
        assert left < 1e-9


def test_eta_hat_leaves_the_value_and_changes_the_gradient(shown):
    rows = re.findall(r"^(\S+) +value (\S+) +‖gradient‖ (\S+)$", shown.text, re.MULTILINE)
    names, values, gradients = zip(*rows, strict=True)
    assert list(names) == OBJECTIVES[1:]
    assert float(max(values)) - float(min(values)) < 1e-5
    assert len(set(gradients)) == 3


def test_the_interrupted_run_ends_bit_for_bit_as_the_watched_one(shown):
    half, whole = map(int, re.search(r"stopped after (\d+) of (\d+)", shown.text).groups())
    more, same, tensors = map(
        int, re.search(r"(\d+) steps more; (\d+) of (\d+) tensors", shown.text).groups()
    )
    assert half + more == whole
    assert same == tensors > 0
