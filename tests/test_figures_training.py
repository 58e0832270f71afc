"""The figures of training show the checks' numbers, averaged over seeds and nothing else."""

import json

import numpy as np
import pytest

from figures.training import drawings, plot, plot_layers, read
from theory.errors import InputError
from theory.record import json_line

EPOCHS = (0.0, 1.0, 2.0)


def estimate(value):
    return {"value": value, "low": None, "high": None}


def check_of(seed, epoch, scale=1.0):
    """A check whose numbers all tell the seed and the epoch."""
    number = scale * (1 + seed + 10 * epoch)
    return {
        "epoch": epoch, "step": int(10 * epoch), "lr": 0.1 if epoch < 2 else 0.01, "samples": 8,
        "relative_error": estimate(number), "normalization": estimate(2 * number),
        "homogeneity": estimate(3 * number), "pearson": estimate(number / 100),
        "mean_abs_q": 4 * number, "alignment": {"cosine_q": 0.0, "cosine_abs_q": -number / 100},
        "attribution": [
            {"layer": "conv", "kind": "Conv2d", "mean": -number, "mean_abs": 2 * number},
            {"layer": "head", "kind": "Linear", "mean": 5 * number, "mean_abs": 6 * number},
            {"layer": "(unattributed)", "kind": "", "mean": 0.5, "mean_abs": 0.5},
        ],
    }  # fmt: skip


def run_of(objective, seed, epochs=EPOCHS, scale=1.0, model="preact18"):
    return {
        "recipe": {
            "model": model, "width": 8, "data": "digits", "objective": objective, "seed": seed,
        },
        "result": None,
        "log": [],
        "checks": [check_of(seed, epoch, scale) for epoch in epochs],
    }  # fmt: skip


def written(path, *runs):
    path.write_text("".join(map(json_line, runs)))
    return path


@pytest.fixture
def rows(tmp_path):
    runs = [run_of("erm", 0), run_of("erm", 1), run_of("mixup", 0, scale=2.0)]
    return read(written(tmp_path / "runs.jsonl", *runs))


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


def test_rows_are_the_checks_with_their_runs(rows):
    assert len(rows) == 9
    keys = ("network", "objective", "seed", "epoch", "lr")
    assert [rows[4][key] for key in keys] == ["preact18, width 8 on digits", "erm", 1, 1.0, 0.1]
    assert rows[4]["relative_error"] == estimate(12.0)


def test_a_folder_of_runs_gives_the_rows_of_its_record(rows, tmp_path):
    for objective, seed, scale in (("erm", 0, 1.0), ("erm", 1, 1.0), ("mixup", 0, 2.0)):
        folder = tmp_path / "runs" / f"{objective}-seed{seed}"
        folder.mkdir(parents=True)
        run = run_of(objective, seed, scale=scale)
        (folder / "recipe.json").write_text(json.dumps(run["recipe"]))
        (folder / "checks.jsonl").write_text("".join(map(json_line, run["checks"])))
    assert read(tmp_path / "runs") == rows


@pytest.mark.parametrize(("panel", "factor"), [*enumerate((1.0, 2.0, 3.0, 0.01, -0.01, 4.0))])
def test_lines_are_means_over_seeds_and_points_the_seeds(rows, panel, factor):
    lines = lines_of(plot(rows).axes[panel])
    # Seeds 0 and 1 have 1 and 2 in the first epoch, 11 and 12 in the second, and so on.
    np.testing.assert_array_equal(lines["erm"].get_xdata(), EPOCHS)
    np.testing.assert_allclose(lines["erm"].get_ydata(), factor * np.array([1.5, 11.5, 21.5]))
    points = lines["_seeds of erm"]
    assert points.get_linestyle() == "None"
    drawn = sorted(zip(points.get_xdata(), points.get_ydata(), strict=True))
    expected = sorted((e, factor * (1 + s + 10 * e)) for s in (0, 1) for e in EPOCHS)
    np.testing.assert_allclose(drawn, expected)
    np.testing.assert_allclose(lines["mixup"].get_ydata(), 2 * factor * np.array([1, 11, 21]))
    assert "_seeds of mixup" not in lines


def test_means_stop_where_a_seed_has_not_come_yet_and_points_go_on(tmp_path):
    runs = [run_of("erm", 0), run_of("erm", 1, epochs=EPOCHS[:2])]
    lines = lines_of(plot(read(written(tmp_path / "runs.jsonl", *runs))).axes[0])
    np.testing.assert_allclose(lines["erm"].get_xdata(), EPOCHS[:2])
    assert len(lines["_seeds of erm"].get_xdata()) == 5


def test_an_undefined_value_leaves_a_gap_instead_of_a_mean_over_the_others(tmp_path):
    runs = [run_of("erm", 0), run_of("erm", 1)]
    runs[1]["checks"][1]["pearson"] = estimate(None)
    lines = lines_of(plot(read(written(tmp_path / "runs.jsonl", *runs))).axes[3])
    np.testing.assert_allclose(lines["erm"].get_ydata(), [0.015, np.nan, 0.215])


def test_sizes_have_log_axes_and_the_error_a_line_at_one(rows):
    axes = plot(rows).axes
    assert [ax.get_yscale() for ax in axes[:6]] == ["log", "log", "log", "linear", "linear", "log"]
    assert list(lines_of(axes[0])["no better than zero"].get_ydata()) == [1, 1]


def test_a_gap_of_exactly_zero_is_drawn(tmp_path):
    run = run_of("erm", 0)
    run["checks"][0]["homogeneity"] = estimate(0.0)
    ax = plot(read(written(tmp_path / "runs.jsonl", run))).axes[2]
    assert ax.get_yscale() == "symlog"
    assert list(lines_of(ax)["erm"].get_ydata()) == [0, 33, 63]
    assert ax.get_ylim()[0] == 0


def test_the_learning_rate_is_below_on_the_same_epochs(rows):
    figure = plot(rows)
    for column, ax in enumerate(figure.axes[6:]):
        assert ax.get_xlabel() == "epoch"
        assert ax.get_xlim() == figure.axes[column].get_xlim()
        (line,) = ax.lines
        assert list(line.get_xdata()) == list(EPOCHS)
        assert list(line.get_ydata()) == [0.1, 0.1, 0.01]


def test_objectives_differ_in_color_and_marker_on_a_legend_off_the_data(rows):
    figure = plot(rows)
    lines = lines_of(figure.axes[0])
    for get in ("get_color", "get_marker"):
        assert getattr(lines["erm"], get)() != getattr(lines["mixup"], get)()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "erm", "mixup", "no better than zero",
    ]  # fmt: skip
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_tightbbox()) for ax in figure.axes)


def test_every_axis_is_named(rows):
    one = [row for row in rows if row["objective"] == "mixup"]
    for figure, upper in ((plot(rows), 6), (plot_layers(one), 2)):
        assert all(ax.get_ylabel() for ax in figure.axes)
        assert all(ax.get_title(loc="left") for ax in figure.axes[:upper])
        assert all(ax.get_xlabel() for ax in figure.axes[upper:])


def test_without_gradient_alignment_its_panel_says_so(tmp_path):
    run = run_of("erm", 0)
    for check in run["checks"]:
        check["alignment"] = None
    figure = plot(read(written(tmp_path / "runs.jsonl", run)))
    assert figure.axes[4].texts[0].get_text() == "not measured"
    assert not figure.axes[3].texts


def test_shares_by_layer_are_the_checks_and_add_up_to_the_gap(rows):
    one = [row for row in rows if row["objective"] == "mixup"]
    left, right = plot_layers(one, most=1).axes[:2]
    lines = lines_of(left)
    numbers = 2 * np.array([1, 11, 21])
    np.testing.assert_allclose(lines["head"].get_ydata(), 5 * numbers)
    np.testing.assert_allclose(lines["2 others together"].get_ydata(), 0.5 - numbers)
    np.testing.assert_allclose(lines["whole gap"].get_ydata(), 0.5 + 4 * numbers)
    np.testing.assert_allclose(right.lines[0].get_ydata(), 6 * numbers)


def test_layers_have_the_same_color_in_both_panels_largest_first(rows):
    one = [row for row in rows if row["objective"] == "mixup"]
    left, right = plot_layers(one).axes[:2]
    assert [line.get_label() for line in left.lines[:3]] == ["head", "conv", "(unattributed)"]
    for signed, size in zip(left.lines[:3], right.lines, strict=True):
        assert signed.get_color() == size.get_color()


def test_with_batch_statistics_only_the_signed_shares_are_drawn(tmp_path):
    run = run_of("erm", 0)
    for check in run["checks"]:
        for part in check["attribution"]:
            part["mean_abs"] = None
    left, right = plot_layers(read(written(tmp_path / "runs.jsonl", run))).axes[:2]
    assert "batch statistics" in right.texts[0].get_text()
    np.testing.assert_allclose(lines_of(left)["head"].get_ydata(), [5, 55, 105])


def test_shares_of_several_runs_are_refused(rows):
    with pytest.raises(InputError, match="erm with seed 0, erm with seed 1, mixup with seed 0"):
        plot_layers(rows)


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([run_of("erm", 0, epochs=())], "no checks: train with --check-every"),
        ([run_of("erm", 0), run_of("erm", 1, model="vgg11")], "preact18, .* and of vgg11"),
        ([run_of("erm", 0), run_of("erm", 0)], "two runs of erm with seed 0"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, runs, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        read(written(tmp_path / "runs.jsonl", *runs))
    assert "\n" not in str(caught.value)


def test_layers_are_drawn_of_a_single_run_only(rows):
    assert list(drawings(rows)) == ["training"]
    one = [row for row in rows if row["objective"] == "mixup"]
    assert list(drawings(one)) == ["training", "layers"]
    for drawing in drawings(one).values():
        assert one[0]["network"] in drawing.caption
        assert drawing.plot().axes
