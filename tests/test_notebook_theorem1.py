"""The derivation of Theorem 1 runs from top to bottom, in time, and says what its numbers say."""

import re

import pytest
from run_notebook import run_notebook

NUMBER = r"([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return run_notebook("theorem1", tmp_path_factory.mktemp("notebook"))


def numbers_after(text: str, label: str) -> list[float]:
    """The numbers on the line that begins with the label."""
    (line,) = re.findall(rf"^ *{re.escape(label)}(.*)$", text, re.MULTILINE)
    return [float(n) for n in re.findall(NUMBER, line)]


def test_it_runs_in_time_with_its_figures(shown):
    assert shown.seconds < 360.0  # two minutes on two free cores, more where they are shared
    assert shown.images == 4


def test_every_identity_that_it_shows_is_proved(shown):
    assert shown.text.count("proved, residual 0") == 21
    assert "NOT PROVED" not in shown.text


def test_both_sides_of_theorem_1_agree_and_r_exceeds_the_standard_risk(shown):
    (difference,) = numbers_after(shown.text, "relative difference of the two sides")
    assert difference < 1e-9
    assert numbers_after(shown.text, "R ")[0] > numbers_after(shown.text, "L_std")[0]


def test_moments_in_symbols_are_the_numeric_ones_and_not_those_of_beta(shown):
    rows = re.findall(r"^   \d   (0\.\d{6})   (0\.\d{6})   (0\.\d{6})$", shown.text, re.MULTILINE)
    assert len(rows) == 6
    for symbolic, numeric, wrong in rows:
        assert symbolic == numeric
        assert symbolic != wrong


def test_first_order_is_a_small_part_of_r(shown):
    assert 0 < numbers_after(shown.text, "first order")[0] < 0.25


def test_remainders_fall_with_slope_k_plus_one(shown):
    rows = re.findall(r"^   \d   (\d\.\d{3})   (\d)$", shown.text, re.MULTILINE)
    assert len(rows) == 5
    for slope, theory in rows:
        assert float(slope) == pytest.approx(float(theory), abs=0.1)


def test_the_expansion_comes_near_r_and_departs(shown):
    rows = re.findall(
        rf"{NUMBER} at K = 1,   least {NUMBER} at K = \d+,   {NUMBER} at K", shown.text
    )
    assert len(rows) == 3
    for first, least, last in rows:
        assert float(least) < 0.5 * float(first)
        assert float(last) > 1


def test_the_radius_of_convergence_is_below_one_and_most_mass_inside(shown):
    median, *_ = numbers_after(shown.text, "radius by the root test over pairs: median")
    assert median < 1
    assert numbers_after(shown.text, "mass of D̃ at a below the median radius:")[0] > 50


def test_q_hat_fails_by_both_gaps_and_is_exact_where_both_arguments_hold(shown):
    """Columns: error of q̂, normalisation gap, homogeneity gap, what no layer accounts for."""
    tanh = numbers_after(shown.text, "tanh      ")
    relu = numbers_after(shown.text, "ReLU      ")
    no_bias = numbers_after(shown.text, "ReLU, no biases")
    centred = numbers_after(shown.text, "and centred")
    assert min(tanh[:3]) > 0.25
    assert relu[2] < relu[1]
    assert no_bias[2] < 1e-12 < 0.1 < no_bias[0]
    assert max(centred) < 1e-12
    assert max(row[3] for row in (tanh, relu, no_bias, centred)) < 1e-12


def test_eta_hat_leaves_the_value_and_changes_the_gradient(shown):
    rows = re.findall(r"η = \S+ +loss (\S+) +‖gradient‖ (\S+)", shown.text)
    assert len(rows) == 3
    assert len({loss for loss, _ in rows}) == 1
    assert len({gradient for _, gradient in rows}) == 3
