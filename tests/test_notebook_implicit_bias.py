"""The notebook runs from top to bottom, in time, and its printed numbers are its claims."""

import re

from run_notebook import run_notebook


def test_the_notebook_runs_in_under_90_seconds_and_shows_what_it_says(tmp_path):
    shown = run_notebook("implicit_bias", tmp_path)
    assert shown.seconds < 90.0
    assert shown.images == 4
    rates = re.findall(r"([+-]\d\.\d+) ± (\S+)   theory ([+-]\d\.\d+)", shown.text)
    assert len(rates) == 8
    for fitted, error, theory in rates:
        assert abs(float(fitted) - float(theory)) <= float(error) + 1e-5
