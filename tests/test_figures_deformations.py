"""The figure shows the numbers of the record."""

import copy
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from figures.__main__ import main
from figures.deformations import draw_accuracies, draw_curve, plot, read
from theory.errors import InputError

NAMES = ["clean", "rotation 20", "rotation=0", "rotation=10", "shear=0", "zoom=1"]


def measures(start):
    return {name: {"accuracy": start - 0.05 * k} for k, name in enumerate(NAMES)}


def group(label, seeds, start, sd):
    own = {
        name: {"accuracy": {"mean": start - 0.05 * k, "sd": sd, "se": 0.02}}
        for k, name in enumerate(NAMES)
    }
    return {"label": label, "seeds": seeds, "measures": own}


@pytest.fixture
def record():
    runs = [("erm", 0.85), ("erm", 0.95), ("mixup", 0.8)]
    return {
        "data": "cifar100",
        "samples": 100,
        "groups": [group("erm", [0, 1], 0.9, 0.07), group("mixup", [0], 0.8, None)],
        "runs": [{"label": label, "measures": measures(start)} for label, start in runs],
        "published": {"columns": ["Ours"], "accuracy": {"rotation 20": [62.23]}},
    }


def test_points_bars_and_published_numbers(record):
    ax = Figure().add_subplot()
    draw_accuracies(ax, record)
    ends = []
    for container, expected in zip(ax.containers, ([90, 85], [80, 75]), strict=True):
        points, _, (bars,) = container.lines
        np.testing.assert_allclose(points.get_ydata(), expected)
        ends.append([np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, [[7, 7], [3.92, 3.92]])  # sd; 1.96 standard errors
    dots = [line.get_ydata() for line in ax.lines if line.get_marker() == "."]
    np.testing.assert_allclose(dots, [[85, 80], [95, 90]])
    talk = next(line for line in ax.lines if line.get_label() == "talk: Ours")
    assert (list(talk.get_xdata()), list(talk.get_ydata())) == ([1], [62.23])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["clean", "rotation\n20"]


def test_curve_is_accuracy_against_the_amount(record):
    ax = Figure().add_subplot()
    draw_curve(ax, record, "rotation")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 80], [10, 75]])
    assert "rotation" in ax.get_xlabel()


def test_panels_follow_the_record(record):
    assert len(plot(record).axes) == 4
    plain = copy.deepcopy(record)
    for entry in (*plain["groups"], *plain["runs"]):
        entry["measures"] = {k: v for k, v in entry["measures"].items() if "=" not in k}
    assert len(plot(plain).axes) == 1


def test_command_writes_beside_the_record_and_names_bad_input(record, tmp_path, capsys):
    path = tmp_path / "robustness.json"
    for text, message in (
        (None, "cannot read"),
        ("[]", "no record"),
        ('{"groups": []}', "no record"),
        (json.dumps({**record, "groups": []}), "no record"),
        (json.dumps({**record, "groups": [{"label": "erm"}]}), "no record"),
    ):
        if text:
            path.write_text(text)
        with pytest.raises(InputError, match=message):
            read(path)
    path.write_text(json.dumps(record))
    assert main([str(path)]) == 0
    assert (tmp_path / "deformations.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'deformations.png'} ")
