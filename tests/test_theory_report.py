"""The report and its verdicts: round trip, atomic writing, table, conditions."""

import html
import json
import math
import os
import re
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from theory import InputError, check_approximation, read_reports
from theory.record import environment, write_atomically
from theory.report import SCHEMA_VERSION, Claim, claims_table, corrections_table
from theory.verdicts import (
    CONDITION_NAMES,
    broken_conditions,
    parse_condition,
    rest_of_first_order,
)


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
    return check_approximation(model, [(x, torch.arange(8) % 3)], pair_samples=3)


@pytest.mark.parametrize(
    ("value", "comparison", "verdict"),
    [
        (0.5, "<=", "HOLDS"),
        (0.51, "<=", "FAILS"),
        (0.5, ">=", "HOLDS"),
        (0.49, ">=", "FAILS"),
        (math.nan, "<=", "NOT MEASURED"),
        (math.nan, ">=", "NOT MEASURED"),
        (math.inf, "<=", "FAILS"),
    ],
)
def test_verdict_is_the_comparison(value, comparison, verdict):
    assert Claim("c", "s", "m", value, comparison, 0.5).verdict == verdict


def test_json_round_trip_keeps_every_number(report, tmp_path):
    report.to_json(tmp_path / "r.json")
    (back,) = read_reports(tmp_path / "r.json")
    for frame in ("samples", "agreement", "attribution", "corrections", "alignment"):
        pd.testing.assert_frame_equal(
            getattr(back, frame), getattr(report, frame), check_names=False
        )
    assert str(back) == str(report)
    assert back.regularizer == report.regularizer
    assert back.settings == json.loads(json.dumps(report.settings))
    assert back.environment == report.environment


def test_records_from_before_corrections_can_be_read(report, tmp_path):
    report.to_json(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    del content["checks"][0]["corrections"]
    (tmp_path / "r.json").write_text(json.dumps(content))
    (back,) = read_reports(tmp_path / "r.json")
    assert back.corrections.empty
    assert str(back) == str(report)


def test_an_unbounded_interval_survives_the_round_trip(report, tmp_path):
    claims = {"c": Claim("c", "s", "m", 1.0, "<=", 0.5, low=0.2, high=math.inf)}
    replace(report, claims=claims).to_json(tmp_path / "r.json")
    assert read_reports(tmp_path / "r.json")[0].claims == claims


def test_what_json_cannot_hold_survives_the_round_trip(tmp_path):
    """A constant network: R = 0, its series ends at once, nothing is correlated."""
    model = nn.Linear(5, 3)
    nn.init.zeros_(model.weight)
    data = [(torch.randn(4, 5), torch.arange(4) % 3)]
    report = check_approximation(model, data, order=4, pair_samples=3, max_pieces=9)
    assert report.orders["r"] == 0
    assert report.orders["convergence"]["median_radius"]["root"] == math.inf
    report.to_json(tmp_path / "r.json")
    (back,) = read_reports(tmp_path / "r.json")
    assert str(back) == str(report)
    assert "inf (root)" in str(back)
    for name in ("orders", "regularizer", "segments"):
        assert repr(getattr(back, name)) == repr(getattr(report, name))  # nan == nan so
    assert back.regularizer["sampled"]["tolerance"] is None
    assert list(map(str, back.self_check["errors"])) == list(map(str, report.self_check["errors"]))


def test_corrections_are_shown_with_their_costs_and_errors(report):
    """One row each, in columns, the first and the last known by heart."""
    lines = corrections_table([report, report]).splitlines()
    assert len(lines) == 2 + len(report.corrections)
    first, last = (line.split() for line in (lines[2], lines[-1]))
    error = report.claims["q_hat"].value
    assert first[1:] == [
        "1.0",
        "3.2",
        *[f"{error:.3g}", f"{report.agreement['value']['pearson']:+.2f}"] * 2,
    ]
    assert last[-4:] == ["0", "+1.00", "0", "+1.00"]


def test_json_is_standard_and_says_its_version_and_verdicts(report, tmp_path):
    report.to_json(tmp_path / "r.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert content["schema_version"] == SCHEMA_VERSION
    assert {"python", "versions", "commit"} <= set(content["environment"])
    (check,) = content["checks"]
    assert check["claims"]["q_hat"]["verdict"] == report.claims["q_hat"].verdict


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"schema_version": 99, "checks": []}']
)
def test_reading_what_is_no_report_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=r"r\.json") as caught:
        read_reports(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_reading_a_missing_report_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_reports(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "r.txt"
    target.write_text("old")

    def break_off(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_atomically(target, break_off)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/r\.json"):
        write_atomically(tmp_path / "file" / "r.json", lambda path: None)


def test_written_files_have_the_usual_mode(tmp_path):
    write_atomically(tmp_path / "a", lambda path: path.write_text(""))
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_environment_names_the_commit_of_this_checkout():
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=os.path.dirname(__file__)
    )
    if git.returncode:
        pytest.skip("the tests do not run in a git checkout")
    assert environment()["commit"].removesuffix("+changes") == git.stdout.strip()


def test_table_lines_up_though_hats_take_no_column(report):
    lines = claims_table([report]).splitlines()
    rule = lines[1]
    starts = [k for k, c in enumerate(rule) if c == "─" and (k == 0 or rule[k - 1] == " ")]
    rows = lines[2 : 2 + len(report.claims)]
    for row in rows:
        shown = "".join(c for c in row if c != "\u0302")
        for start in starts[1:]:
            assert shown[start - 2 : start] == "  "
            assert shown[start] != " "


def test_bounds_and_notes_that_differ_between_checks_say_whose_they_are(report):
    identity = report.claims["identity"]
    other = replace(identity, threshold=2 * identity.threshold, note="another")
    later = replace(report, claims={**report.claims, "identity": other})
    lines = claims_table([report, later]).splitlines()
    (row,) = [line for line in lines if line.startswith("identity ")]
    assert f"≤ {identity.threshold:.3g}, {2 * identity.threshold:.3g}  " in row
    assert "identity, measured: another" in lines
    assert not any("e-06, " in line for line in lines if line.startswith("self_check"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q_hat>0.5", ("q_hat", ">", 0.5)),
        (" pearson <= -1e-3 ", ("pearson", "<=", -1e-3)),
        ("gradient<.9", ("gradient", "<", 0.9)),
    ],
)
def test_conditions_are_parsed(text, expected):
    assert parse_condition(text) == expected


@pytest.mark.parametrize("text", ["q_hat", "q_hat=1", "q_hat>", "q_hat>e", "qhat>1", ">1", ""])
def test_other_conditions_are_refused(text):
    with pytest.raises(InputError, match="--fail-on"):
        parse_condition(text)


def test_conditions_are_judged_by_the_report(report):
    value = report.claims["q_hat"].value
    assert broken_conditions(report, [f"q_hat>{value - 1e-3:.6f}"])
    assert not broken_conditions(report, [f"q_hat>{value + 1e-3:.6f}"])
    correlation = report.agreement["value"]["pearson"]
    assert broken_conditions(report, [f"pearson<{correlation + 0.1:.6f}"])


def test_what_was_not_measured_breaks_its_condition(report):
    x = torch.randn(4, 5)
    model = nn.Linear(5, 3)
    blind = check_approximation(model, [(x, torch.arange(4) % 3)], gradients=False, pair_samples=2)
    assert broken_conditions(blind, ["gradient<0"])


def test_every_condition_name_can_be_judged(report):
    for name in CONDITION_NAMES:
        assert len(broken_conditions(report, [f"{name}>-1e9"])) == 1


@pytest.mark.parametrize(
    ("first_order", "low", "high"),
    [(0.1, 0.2, 0.4), (0.3, 0.2, 0.4), (0.9, 0.2, 0.4), (-0.1, 0.2, 0.4), (0.1, -0.4, -0.2)],
)
def test_the_interval_of_the_rest_is_its_range_over_that_of_r(first_order, low, high):
    r = np.linspace(low, high, 20001)
    rest = np.abs(r - first_order) / np.abs(r)
    value, least, greatest = rest_of_first_order(first_order, float(r[5000]), low, high)
    assert value == pytest.approx(rest[5000])
    assert least == pytest.approx(rest.min(), abs=1e-4)
    assert greatest == pytest.approx(rest.max())


def test_an_interval_around_zero_leaves_the_rest_unbounded():
    value, least, greatest = rest_of_first_order(-0.3, 0.1, -0.1, 0.3)
    assert value == pytest.approx(4)
    assert least == pytest.approx(2)
    assert greatest == math.inf


def test_a_prompt_shows_what_print_shows(report):
    assert repr(report) == str(report)
    assert repr(report).startswith("name ")
    for name, claim in report.claims.items():
        assert re.search(rf"^{name} .* {claim.verdict}\b", repr(report), re.MULTILINE)


def test_jupyter_shows_the_claims_and_a_point_a_sample(report):
    text = report._repr_html_()
    assert text.count("<circle") == len(report.samples)
    for claim in report.claims.values():
        assert html.escape(claim.statement) in text
        assert f">{claim.verdict}</span>" in text
