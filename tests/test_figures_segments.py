"""The panels on segments show the numbers that they are given."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from figures.segments import draw_regions, draw_segment, draw_split
from theory.losses import loss
from theory.segments import segment_pieces


@pytest.fixture
def ax():
    return Figure().add_subplot()


def test_histogram_holds_every_segment_and_tells_lower_bounds_apart(ax):
    counts = np.array([3, 5, 5, 9, 9, 9, 30])
    covered = np.array([1, 1, 1, 1, 1, 0.5, 0.2])
    draw_regions(ax, counts, covered)
    heights = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert heights == [5, 2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "all regions", "at least (budget spent)", "median 9"
    ]  # fmt: skip


@pytest.mark.parametrize("counts", [[1, 1], [7], [1, 30_000]])
def test_histogram_of_few_or_far_counts(ax, counts):
    draw_regions(ax, counts)
    assert sum(bar.get_height() for bar in ax.containers[0]) == len(counts)


def test_split_adds_up_to_r(ax):
    """Bars of one sign stand on each other, others on both sides of zero."""
    draw_split(ax, torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.5, -1.0, -0.5]))
    smooth, kinks = ax.containers
    assert [bar.get_height() for bar in smooth] == [-1, 2, 1]
    assert [(bar.get_y(), bar.get_height()) for bar in kinks] == [(-1, -0.5), (0, -1), (1, 0.5)]
    assert ax.lines[0].get_ydata().tolist() == [-1.5, 1, 1.5]


def test_segment_shows_the_loss_its_kinks_and_the_first_piece(ax):
    def f(z):
        return torch.cat([z, 2 * (z - 0.25).relu() - (z - 0.5).relu()], 1)

    target = torch.tensor([[1.0, 0.0]]).double()
    pieces = segment_pieces(f, torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    draw_segment(ax, pieces.breakpoints, pieces.logits, target[0])
    first, curve, kinks = ax.lines
    a = torch.as_tensor(np.asarray(curve.get_xdata()))[:, None]
    np.testing.assert_allclose(curve.get_ydata(), loss(f(a), target.expand(len(a), -1)), atol=1e-12)
    np.testing.assert_allclose(kinks.get_xdata(), [0.25, 0.5], atol=1e-13)
    tangent = loss(torch.cat([a, 0 * a], 1), target.expand(len(a), -1))
    np.testing.assert_allclose(first.get_ydata(), tangent, atol=1e-12)
    assert ax.get_xlabel()
    assert ax.get_title(loc="left") or ax.get_title()


def test_a_segment_covered_in_part_is_drawn_as_far_as_it_is_known(ax):
    pieces = segment_pieces(
        lambda z: torch.cat([z.abs(), (z - 1).abs()], 1), torch.full((1, 1), -1.0).double(),
        torch.full((1, 1), 3.0).double(), max_pieces=2,
    )  # fmt: skip
    draw_segment(ax, pieces.breakpoints, pieces.logits, [1.0, 0.0])
    assert ax.lines[1].get_xdata()[-1] <= 0.5
    assert ax.lines[0].get_xdata()[-1] == 1
