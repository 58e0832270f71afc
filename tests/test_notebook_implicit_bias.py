"""The notebook runs from top to bottom, in time, and its printed numbers are its claims."""

import re

from run_notebook import run_notebook, unexplained_plots


def test_the_notebook_runs_in_time_and_shows_what_it_says(tmp_path):
    shown = run_notebook("implicit_bias", tmp_path)
    assert shown.seconds < 360.0  # two minutes on two free cores, more where they are shared
    assert shown.images == 4
    rates = re.findall(r"([+-]\d\.\d+) ± (\S+)   theory ([+-]\d\.\d+)", shown.text)
    assert len(rates) == 8
    for fitted, error, theory in rates:
        assert abs(float(fitted) - float(theory)) <= float(error) + 1e-5
    limits = re.findall(r"limit +([+-]\d+\.\d)°, at α = 1e-10 +([+-]\d+\.\d)°", shown.text)
    (corner, on_its_way), (other, nearly_there) = [tuple(map(float, row)) for row in limits]
    assert (corner, other) == (0.0, 26.9)
    assert abs(on_its_way) > 3.0
    assert abs(nearly_there - other) < 3.0


def test_every_plot_is_followed_by_what_is_seen():
    assert unexplained_plots("implicit_bias") == (4, [])
