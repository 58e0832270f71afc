"""A table as published beside ours: numbers by hand, text against a golden file."""

import math
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deep.tables.compare import cells, gains, measured, ranks, selections
from deep.tables.published import published
from deep.tables.render import latex, overview, rendered
from deep.tables.statistics import paired_difference

GOLDEN = Path(__file__).parent / "golden" / "table.md"


def line(row, errors, selection=None, resplit=True):
    """A record's line: method -> errors by split."""
    results = [
        {"method": method, "split": split, "error": error, "selection": selection}
        for method, values in errors.items()
        for split, error in enumerate(values)
    ]
    return {
        "job": row,
        "row": row,
        "resplit": resplit,
        "settings": {
            "lr": 0.1,
            "seeds": list(range(12)),
            "alphas": [0.5, 1.0],
            "row": row,
            "width": None,
        },
        "command": "python -m deep.table 4 --rows iris cmc --data-dir 'my data'",
        "data": {"source": "made", "train": 60, "test": 20},
        "results": results,
    }


LINES = [
    line("iris", {
        "erm": [0.10, 0.12, 0.08, 0.10], "mixup": [0.09, 0.11, 0.08, 0.10],
        "mixupe-paper": [0.04, 0.05, 0.03, 0.03], "mixupe-exact": [0.05, 0.07, 0.03, 0.05],
    }),
    line("cmc", {
        "erm": [0.45, 0.46, 0.44, 0.45], "mixup": [0.45, 0.46, 0.44, 0.45],
        "mixupe-paper": [0.46, 0.48, 0.45, 0.46], "mixupe-exact": [0.45, 0.47, 0.44, 0.44],
    }),
]  # fmt: skip


def test_published_numbers_are_per_cent_with_their_unit():
    assert len(published(4).rows) == 15
    assert published(4).rows["iris"].errors["mixupe-paper"] == (7.29, 6.95)
    assert len(published(5).rows) == 3
    assert published(6).rows["MUTAG"].errors["erm"] == pytest.approx((10.15, 6.0))


def test_cells_by_hand():
    frame = cells(published(4), measured(LINES, None)).set_index(["row", "method"])
    iris = frame.loc[("iris", "erm")]
    assert iris["ours"] == pytest.approx(10)
    assert iris["sd"] == pytest.approx(math.sqrt(8 / 3))
    assert iris["difference"] == pytest.approx(10 - 9.06)
    assert math.isnan(frame.loc[("letter", "erm")]["ours"])
    assert math.isnan(frame.loc[("iris", "mixupe-exact")]["published"])


def test_gains_are_paired_over_the_splits_that_both_methods_have():
    lines = [line("iris", {"mixup": [0.2, 0.3, 0.4, 0.9], "mixupe-paper": [0.1, 0.3, 0.3]})]
    frame = gains(published(4), measured(lines, None))
    truth = paired_difference(np.array([10.0, 30.0, 30.0]), np.array([20.0, 30.0, 40.0]), 1 / 3)
    assert frame["repetitions"].tolist() == [3]
    assert frame["difference"].iloc[0] == pytest.approx(truth.mean)
    assert frame["low"].iloc[0] == pytest.approx(truth.low)


def test_splits_that_are_shared_take_no_correction():
    lines = [line("LeNet", {"mixup": [0.2, 0.3], "mixupe-paper": [0.1, 0.3]}, resplit=False)]
    row = measured(lines, None)["LeNet"]
    assert row.test_over_train == 0


def test_training_examples_are_those_learned_from():
    """A result that holds some out to select by says so; another goes by its data's parts."""
    held_out = line("MUTAG", {"erm": [0.1, 0.2]}, "nested")
    held_out["results"] = [{**result, "train": 50} for result in held_out["results"]]
    both = [line("MUTAG", {"erm": [0.1, 0.2]}, "common epoch"), held_out]
    assert measured(both, "common epoch")["MUTAG"].test_over_train == 20 / 60
    assert measured(both, "nested")["MUTAG"].test_over_train == 20 / 50


def test_holm_runs_over_the_rows_of_one_comparison():
    frame = gains(published(4), measured(LINES, None))
    block = frame[(frame["method"] == "mixupe-paper") & (frame["baseline"] == "mixup")]
    rows = measured(LINES, None)
    raw = [
        paired_difference(*rows[r].of("mixupe-paper", "mixup"), 1 / 3).p for r in ("cmc", "iris")
    ]
    assert sorted(block["p"]) == pytest.approx(sorted([2 * min(raw), max(2 * min(raw), max(raw))]))


def test_ranks_over_rows():
    found = ranks(measured(LINES, None))
    assert found.rows == 2
    assert found.ranks["mixupe-paper"] == (1 + 4) / 2
    assert ranks(measured(LINES[:1], None)) is None


def test_equal_means_share_a_rank_whatever_order_they_were_added_in():
    """3, 5 and 8 of 30 wrong, in two orders: the sums differ in the last bit."""
    one, other = ([k / 30 for k in wrong] for wrong in ((3, 5, 8), (3, 8, 5)))
    lines = [line(row, {"erm": one, "mixup": other}) for row in ("iris", "cmc")]
    means = [np.array([100 * e for e in errors]).mean() for errors in (one, other)]
    assert means[0] != means[1]
    found = ranks(measured(lines, None))
    assert found.ranks == {"erm": 1.5, "mixup": 1.5}
    assert found.pairs == {("erm", "mixup"): 1}


def test_a_method_of_one_row_leaves_the_others_their_ranks():
    lines = [line(row, {"erm": [0.1, 0.2], "mixup": [0.1, 0.1]}) for row in ("iris", "cmc")]
    lines.append(line("letter", {"erm": [0.1], "mixup": [0.1], "mixupe-exact": [0.1]}))
    assert set(ranks(measured(lines, None)).ranks) == {"erm", "mixup"}


def test_methods_without_a_split_in_common_are_not_compared():
    lines = [line("iris", {"erm": [0.1], "mixupe-paper": [0.1, 0.2]})]
    lines[0]["results"] = [r for r in lines[0]["results"] if r["method"] == "erm" or r["split"]]
    assert gains(published(4), measured(lines, None)).empty


def test_each_selection_is_a_table_of_its_own():
    both = [
        line("MUTAG", {"erm": [0.1, 0.2]}, "common epoch"),
        line("MUTAG", {"erm": [0.3, 0.2]}, "nested"),
    ]
    assert selections(both) == ["common epoch", "nested"]
    assert measured(both, "nested")["MUTAG"].errors["erm"] == pytest.approx({0: 30, 1: 20})
    text = rendered(6, both)["table.md"]
    assert "## Test error [%], common epoch" in text
    assert "## Test error [%], nested" in text


def test_rendered_table_is_the_golden_one():
    """Made once by this very call, and read through by a person."""
    assert rendered(4, LINES)["table.md"] == GOLDEN.read_text(encoding="utf-8")


def test_rows_that_were_not_run_name_their_command():
    text = rendered(4, LINES)["table.md"]
    assert "`python -m deep.table 4 --data-dir 'my data' --rows arrhythmia letter" in text


def test_settings_of_all_jobs_are_told_and_those_that_differ_named():
    text = rendered(4, LINES)["table.md"]
    told = "lr: 0.1; seeds: 0, 1, …, 11; alphas: 0.5, 1.0; by the job, in the record: row."
    assert f"- ours, in every job: {told}\n" in text


def test_latex_escapes_and_aligns():
    text = latex([["a_b [%]", "c"], ["1 ± 2", "−3"]])
    assert r"a\_b [\%] & c \\" in text
    assert r"1 $\pm$ 2 & $-$3 \\" in text
    assert text.count(r"\\") == 2


def test_csv_reads_back():
    files = rendered(4, LINES)
    frame = pd.read_csv(StringIO(files["cells.csv"]))
    assert len(frame) == 15 * 3 + 2
    assert set(pd.read_csv(StringIO(files["gains.csv"]))["verdict"].dropna()) <= {
        "reproduced", "reproduced, smaller", "not reproduced", "undecided", "none claimed"
    }  # fmt: skip


def test_overview_has_a_line_a_row_that_was_run():
    text = overview(4, LINES, None)
    assert len(text.splitlines()) == 2 + 2
    assert "| Iris | 9.06 / 8.14 / 7.29 | 10.00 / 9.50 / 3.75 |" in text
    partly = overview(4, [line("iris", {"erm": [0.1, 0.2], "mixup": [0.1, 0.1]})], None)
    assert "15.00 / 10.00 / not run | – | – | – | – |" in partly
