"""The notebook of the talk's tables runs, in time, and shows what record and table.md hold."""

import re

import pytest
from run_notebook import ROOT, run_notebook, unexplained_plots

from deep.run_folder import read_lines

TABLES = ROOT / "results" / "tables"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return run_notebook("tables", tmp_path_factory.mktemp("notebook"))


def test_it_runs_in_time_with_its_figures(shown):
    assert shown.seconds < 360.0  # two minutes on two free cores, more where they are shared
    assert shown.images >= 3
    assert unexplained_plots("tables") == (3, [])


def test_every_record_that_there_is_is_read(shown):
    records = sorted(TABLES.glob("*/record.jsonl"))
    assert len(re.findall(r"^Table \d: \d+ of \d+ rows", shown.text, re.MULTILINE)) == len(records)
    for path in records:
        lines = read_lines(path)
        networks = sum(line["runs"] for line in lines)
        rows = len({line["row"] for line in lines})
        assert re.search(
            rf"^Table {path.parent.name}: {rows} of \d+ rows, {networks:,} networks",
            shown.text, re.MULTILINE,
        )  # fmt: skip


def test_the_interval_by_scipy_is_that_of_the_rendered_table(shown):
    low, high = map(float, re.search(r"corrected, by SciPy +\[(\S+), (\S+)\]", shown.text).groups())
    table = (TABLES / "4" / "table.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| Mfeat-zernike | mixupe"))
    printed = re.search(r"\[(\S+), (\S+)\]", row.replace("−", "-")).groups()
    assert (low, high) == pytest.approx(tuple(map(float, printed)), abs=6e-3)
    naive = re.search(r"taken for independent +\[(\S+), (\S+)\]", shown.text).groups()
    assert low < float(naive[0]) < float(naive[1]) < high


def test_all_rows_agree_with_scipy(shown):
    count, worst = re.search(
        r"^(\d+) intervals, largest difference (\S+)", shown.text, re.M
    ).groups()
    assert int(count) > 20
    assert float(worst) < 1e-9
    ranks = re.findall(r"mean rank (\S+), by SciPy (\S+)$", shown.text, re.MULTILINE)
    assert len(ranks) == 5
    assert all(ours == theirs for ours, theirs in ranks)
