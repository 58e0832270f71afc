"""Figures of a table's record: what they show is what the record says."""

import json
import math

import numpy as np
import pytest

from deep.tables.compare import Ranks
from figures.__main__ import main
from figures.tables import draw_ranks, drawings, read
from theory.errors import InputError


def line(row, shift, **more):
    errors = {"erm": 0.30, "mixup": 0.28, "mixupe-paper": 0.28 + shift}
    results = [
        {"method": method, "split": k, "error": error + 0.01 * k, **more}
        for method, error in errors.items()
        for k in range(3)
    ]
    data = {"source": "made", "train": 60, "test": 20}
    return {"table": 4, "job": row, "row": row, "resplit": True, "data": data, "results": results}


LINES = [line("iris", -0.02), line("cmc", 0.01), line("letter", -0.01)]


def test_gains_are_drawn_where_the_record_puts_them():
    ax = drawings(LINES)["gains"].plot().axes[1]
    assert ax.get_title(loc="left") == "MixupE − mixup"
    labels = drawings(LINES)["gains"].plot().axes[0].get_yticklabels()
    assert [text.get_text() for text in labels] == ["Letter", "CMC", "Iris"]
    points = {tuple(map(float, p)) for c in ax.containers for p in zip(*c[0].get_data())}  # noqa: B905
    assert {y for _, y in points} == {0, 1, 2}
    assert sorted(x for x, _ in points) == pytest.approx([-2, -1, 1])


def test_what_has_no_interval_is_hollow_and_has_no_bar():
    varied = line("iris", -0.02)
    for result in varied["results"]:
        result["error"] += 0.004 * result["split"] ** 2 * (result["method"] == "mixupe-paper")
    figure = drawings([varied, line("cmc", 0.01)])["gains"].plot()
    ax = figure.axes[1]
    (filled, _, bars), (hollow, caps, none) = ax.containers
    assert filled.get_markerfacecolor() == filled.get_color()
    d = 100 * (-0.02 + np.array([0, 0.004, 0.016]))
    half = 4.302652730 * d.std(ddof=1) * math.sqrt(1 / 3 + 20 / 60)  # t(0.975) of 2 degrees
    ((start, end),) = bars[0].get_segments()
    assert (start[0], end[0]) == pytest.approx((d.mean() - half, d.mean() + half))
    assert hollow.get_markerfacecolor() == "none"
    assert hollow.get_xdata() == pytest.approx([1.0])
    assert (caps, none) == ((), ())
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {f"mixupe-paper, ours{end}" for end in (" [95 %]", ", no interval")} < shown


def without(entry, method):
    results = [result for result in entry["results"] if result["method"] != method]
    return {**entry, "results": results}


def test_a_baseline_that_was_not_run_has_no_panel():
    drawing = drawings([without(entry, "erm") for entry in LINES])["gains"]
    assert [ax.get_title(loc="left") for ax in drawing.plot().axes] == ["MixupE − mixup"]
    assert "over Mixup, in points" in drawing.caption
    assert "ERM" not in drawing.caption


def test_rows_keep_their_names_where_baselines_have_others():
    lines = [without(LINES[0], "erm"), without(LINES[1], "mixup"), LINES[2]]
    names = ["Letter", "CMC", "Iris"]
    axes, found = drawings(lines)["gains"].plot().axes, {}
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == names
    for ax in axes:
        ys = [y for c in ax.containers for y in c[0].get_ydata()]
        found[ax.get_title(loc="left")] = {names[round(y)] for y in ys}
    assert found == {"MixupE − erm": {"Letter", "CMC"}, "MixupE − mixup": {"Letter", "Iris"}}


def test_bars_join_methods_that_are_not_told_apart():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    found = Ranks({"a": 1.0, "b": 1.8, "c": 3.2}, 9, 0.01, 1.0, {})
    draw_ranks(ax, found)
    bars = [line for line in ax.lines if line.get_linewidth() == 3]
    assert [tuple(bar.get_xdata()) for bar in bars] == [pytest.approx((0.97, 1.83))]
    assert {"a (1.00) ", " c (3.20)"} <= {text.get_text() for text in ax.texts}


def test_command_draws_each_selection(tmp_path, capsys):
    lines = [line(row, 0.01, selection=way) for row in ("iris", "cmc") for way in ("a b", "c")]
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (tmp_path / "record.jsonl").write_text(text)
    assert main([str(tmp_path)]) == 0
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"gains-a-b.png", "gains-c.png", "ranks-a-b.png", "ranks-c.png"}
    assert str(tmp_path / "gains-c.png") in capsys.readouterr().out


def test_another_record_is_refused(tmp_path):
    (tmp_path / "record.jsonl").write_text('{"job": 1}\n')
    with pytest.raises(InputError, match=r"no record of deep\.table"):
        read(tmp_path / "record.jsonl")
