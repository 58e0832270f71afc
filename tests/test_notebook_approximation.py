"""The notebook that checks a network of one's own runs, in time, and shows what it claims."""

import re

import pytest
from run_notebook import run_notebook


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return run_notebook("approximation", tmp_path_factory.mktemp("notebook"))


def test_it_runs_in_time_with_its_figure(shown):
    assert shown.seconds < 360.0  # two minutes on two free cores, more where they are shared
    assert shown.images == 1


def test_only_both_assumptions_together_make_q_hat_exact(shown):
    rows = {
        name: [float(text) for text in numbers.split()]
        for name, numbers in re.findall(
            r"^(yours|homogeneous|centred|both) +(.+)$", shown.text, re.MULTILINE
        )
    }
    error, normalisation, homogeneity, cosine = zip(*rows.values(), strict=True)
    assert list(rows) == ["yours", "homogeneous", "centred", "both"]
    assert error[3] < 1e-4 < 0.02 < min(error[:3])
    assert max(normalisation[2:]) < 1e-4 < min(normalisation[:2])
    assert max(homogeneity[1], homogeneity[3]) < 1e-4 < min(homogeneity[0], homogeneity[2])
    assert cosine[3] == pytest.approx(1.0, abs=0.01)
