"""Figures of a table's record: what they show is what the record says."""

import json

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
