"""The figures show the numbers of the report, on axes that are named."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from torch import nn

from figures.__main__ import main
from figures.check_approx import PANELS, drawings, panels_of, plot_overview, plot_panel
from theory import check_approximation
from theory.report import read_reports, write_reports


@pytest.fixture(scope="module")
def checks():
    reports = []
    for epoch in (0.0, 1.0):
        torch.manual_seed(int(epoch))
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
        report = check_approximation(
            model, [(torch.randn(9, 5), torch.arange(9) % 3)], pair_samples=6, order=4,
            max_pieces=50,
        )  # fmt: skip
        reports.append(replace(report, training={"epoch": epoch, "step": 0, "train_loss": None}))
    return reports


def points(figure, k=0):
    return np.asarray(figure.axes[0].collections[k].get_offsets())


def test_scatter_of_q_holds_every_example_of_both_checks(checks):
    figure = plot_panel("q", checks)
    for k, check in enumerate(checks):
        np.testing.assert_array_equal(points(figure, k), check.samples[["q_hat", "q"]])


def test_gaps_add_up_to_the_error(checks):
    figure = plot_panel("gaps", checks)
    normalization, homogeneity = points(figure, 0), points(figure, 1)
    np.testing.assert_allclose(
        normalization[:, 1] + homogeneity[:, 1], normalization[:, 0], atol=1e-6
    )


def test_curves_follow_the_checks(checks):
    figure = plot_panel("errors", checks)
    line = figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 1])
    np.testing.assert_array_equal(
        line.get_ydata(), [check.claims["q_hat"].value for check in checks]
    )


def test_bars_are_the_layers_shares_largest_on_top(checks):
    figure = plot_panel("attribution", checks)
    ax = figure.axes[0]
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())
    widths = [bar.get_width() for bar in bars]
    assert widths == sorted(widths, reverse=True)
    table = checks[-1].attribution.set_index("layer")["mean_abs"]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert [table[label] for label in labels] == pytest.approx(widths)


def test_bars_of_layers_with_totals_alone_say_so(checks):
    def drawn(unknown):
        table = checks[-1].attribution.copy()
        table.loc[unknown, "mean_abs"] = math.nan
        ax = plot_panel("attribution", [replace(checks[-1], attribution=table)]).axes[0]
        names = [label.get_text() for label in ax.get_yticklabels()]
        bars = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in ax.patches}
        widths = [bars[y] for y in sorted(bars)]
        return ax.get_xlabel(), dict(zip(names, widths, strict=True))

    table = checks[-1].attribution.set_index("layer")
    label, bars = drawn([])
    assert label.startswith("mean |share| of")
    assert bars["2"] == pytest.approx(table["mean_abs"]["2"])
    label, bars = drawn(slice(None))
    assert label.startswith("|mean share| of")
    assert bars["2"] == pytest.approx(abs(table["mean"]["2"]))
    label, bars = drawn(table.index.get_loc("2"))
    assert label.startswith("mean |share|, at * |mean share|, of")
    assert bars["2 *"] == pytest.approx(abs(table["mean"]["2"]))
    assert bars["0"] == pytest.approx(table["mean_abs"]["0"])


def test_a_homogeneous_network_says_so_instead_of_an_empty_panel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    data = [(torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3)]
    report = check_approximation(model.double(), data, pair_samples=2)
    figure = plot_panel("attribution", [report])
    assert "homogeneous" in figure.axes[0].texts[0].get_text()


def test_orders_and_remainders_are_the_last_checks(checks):
    orders = checks[-1].orders
    lines = {line.get_label(): line for line in plot_panel("orders", checks).axes[0].lines}
    np.testing.assert_array_equal(lines["R_K, both forms"].get_ydata(), orders["composite"])
    np.testing.assert_allclose(orders["nested"], orders["composite"])  # on affine pieces
    bent = [replace(checks[-1], orders={**orders, "affine_pieces": False})]
    lines = {line.get_label(): line for line in plot_panel("orders", bent).axes[0].lines}
    np.testing.assert_array_equal(lines["R_K, nested form"].get_ydata(), orders["nested"])
    assert set(lines["R itself"].get_ydata()) == {orders["r"]}
    ax = plot_panel("remainders", checks).axes[0]
    first = np.array(orders["remainders"]["of_loss"][0])
    drawn = ax.lines[0].get_ydata()
    clear = first >= orders["remainders"]["rounding"]
    np.testing.assert_array_equal(drawn[clear], first[clear])
    assert np.isnan(drawn[~clear]).all()
    assert len(plot_panel("convergence", checks).axes[0].lines) == 2


def test_kinks_and_first_pieces_add_up_to_r(checks):
    found = checks[-1].segments
    ax = plot_panel("kinks", checks).axes[0]
    i = np.array(found["pairs"]["i"])
    by_sample = np.sort(np.bincount(i, found["total"]) / np.bincount(i))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), by_sample, atol=1e-12)
    counts = np.array(found["counts"])[i != np.array(found["pairs"]["j"])]
    bars = plot_panel("regions", checks).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == len(counts)


def test_the_segment_shown_is_a_usual_one_with_all_its_kinks(checks):
    found = checks[-1].segments
    shown, counts = found["segment"], np.array(found["counts"])
    usual = counts[shown["pair"]]
    assert (counts < usual).mean() <= 0.5 <= (counts <= usual).mean()
    _, curve, kinks = plot_panel("segment", checks).axes[0].lines
    assert len(kinks.get_xdata()) == usual - 1
    np.testing.assert_array_equal(kinks.get_xdata(), shown["breakpoints"][1:-1])
    start, end = (torch.tensor(shown["logits"][k]).log_softmax(0) for k in (0, -1))
    y = torch.tensor(shown["target"])
    assert curve.get_ydata()[0] == pytest.approx(float(-(y * start).sum()), rel=1e-5)
    assert curve.get_ydata()[-1] == pytest.approx(float(-(y * end).sum()), rel=1e-5)


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_names_its_axes(name, checks):
    ax = plot_panel(name, checks).axes[0]
    assert ax.get_xlabel()
    assert ax.get_title(loc="left")


def test_one_check_has_no_panel_through_training(checks):
    more = {"orders", "remainders", "convergence", "regions", "kinks", "segment"}
    assert set(panels_of(checks[:1])) == {"q", "gaps", "attribution", *more}
    first_order_alone = [replace(checks[0], orders={}, segments={})]
    assert set(panels_of(first_order_alone)) == {"q", "gaps", "attribution"}
    assert len(plot_overview(checks[:1]).axes) == 3
    assert len(plot_overview(checks).axes) == 4


def test_one_example_alone_has_neither_regions_nor_remainders():
    """Its only partner is itself: no segment has a length, and no order leaves anything out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(1, 5), torch.zeros(1).long())]
    alone = [check_approximation(model, data, order=4, max_pieces=50)]
    assert set(PANELS) - set(panels_of(alone)) == {"errors", "agreement", "regions", "remainders"}
    for drawing in drawings(alone).values():
        drawing.plot().canvas.draw()


def test_what_is_infinite_or_missing_is_drawn_from_the_record(checks, tmp_path):
    orders = checks[-1].orders
    convergence = orders["convergence"]
    radius = convergence["median_radius"] | {"root": math.inf, "domb_sykes": math.nan}
    exponents = {name: [math.nan] * 4 for name in orders["remainders"]["exponents"]}
    changed = {
        **orders, "rest_composite": [math.nan] * 4,
        "convergence": convergence | {"median_radius": radius},
        "remainders": orders["remainders"] | {"exponents": exponents},
    }  # fmt: skip
    write_reports(tmp_path / "report.json", [replace(checks[-1], orders=changed)])
    back = read_reports(tmp_path / "report.json")
    (line,) = plot_panel("convergence", back).axes[0].lines
    assert line.get_label().endswith("median radius inf")
    for drawing in drawings(back).values():
        drawing.plot().canvas.draw()


def test_style_does_not_leak(checks):
    before = dict(rcParams)
    plot_overview(checks)
    assert dict(rcParams) == before


def test_command_draws_a_record_anew(checks, tmp_path, capsys):
    write_reports(tmp_path / "report.json", checks)
    assert main([str(tmp_path / "report.json"), "--out", str(tmp_path / "new")]) == 0
    drawn = {path.name for path in (tmp_path / "new").iterdir()}
    names = [*PANELS, "overview"]
    assert drawn == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "txt")}
    assert len(capsys.readouterr().out.splitlines()) == len(names)


def test_command_refuses_what_is_no_record(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("gap", [0.3, 1e-7])
def test_labels_of_the_errors_do_not_cover_each_other(checks, gap):
    """A homogeneous network's gap is rounding, seven decades below the error."""
    changed = [
        replace(c, claims={**c.claims, "homogeneity": replace(
            c.claims["homogeneity"], value=gap, low=gap / 2, high=2 * gap)})
        for c in checks
    ]  # fmt: skip
    figure = plot_panel("errors", changed)
    figure.canvas.draw()
    axis = figure.axes[0].yaxis
    low, high = figure.axes[0].get_ylim()
    boxes = sorted(
        (label.get_window_extent().y0, label.get_window_extent().y1)
        for at, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        if low <= at <= high
    )
    assert len(boxes) > 1
    assert all(below[1] <= above[0] for below, above in pairwise(boxes))
