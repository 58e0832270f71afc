"""Vertices: insertion, interpolation, crossings and the corners of maxima, in closed form."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from theory.curves.vertices import (
    ROUNDING,
    TICKS,
    Grid,
    TooManyVertices,
    adaptive_windows,
    corners,
    crossings,
    pooling_windows,
)


def whole(segments=1, limit=1000):
    return Grid.between(torch.zeros(segments).long(), torch.full((segments,), TICKS), limit)


def keys(*positions, segment=0):
    return torch.tensor([segment * 2 * TICKS + round(a * TICKS) for a in positions])


def positions(grid):
    return (grid.ticks.double() / TICKS).tolist()


def test_inserted_vertices_stand_in_order_and_segments_do_not_mix():
    grid = whole(2).inserted(torch.cat([keys(0.75, 0.25), keys(0.5, segment=1)]))
    assert positions(grid) == [0, 0.25, 0.75, 1, 0, 0.5, 1]
    assert grid.segment.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_vertices_within_1e_13_are_one_and_old_ones_stay():
    grid = whole().inserted(keys(0.5))
    near = grid.inserted(keys(1e-14, 0.5 - 1e-14, 0.5 + 1e-14, 0.7, 0.7 + 5e-14, 1 - 1e-14))
    assert positions(near)[:3] == [0, 0.5, pytest.approx(0.7)]
    assert len(near.keys) == 4
    assert near.nearest(keys(0.5 + 1e-14, 0.7 + 5e-14, 0.9)).tolist() == [1, 2, 3]


def test_the_limit_holds():
    grid = whole(limit=3).inserted(keys(0.5))
    with pytest.raises(TooManyVertices):
        grid.inserted(keys(0.25))


def test_interpolation_is_linear_in_each_segment():
    coarse = whole(2)
    fine = coarse.inserted(torch.cat([keys(0.25), keys(0.5, 0.75, segment=1)]))
    rows = torch.tensor([[0.0, 1.0], [4.0, 1.0], [-1.0, 0.0], [1.0, 8.0]]).double()
    got = fine.interpolate(rows, coarse)
    assert got.tolist() == [[0, 1], [1, 1], [4, 1], [-1, 0], [0, 4], [0.5, 6], [1, 8]]


def test_straight_vertices_go_and_kinks_stay():
    grid = whole(2).inserted(torch.cat([keys(0.125, 0.2, 0.25, 0.5, 0.9), keys(0.4, segment=1)]))
    a = grid.ticks.double()[:, None] / TICKS
    rows = torch.cat([2 * a - 1, (a - 0.25).relu()], 1)
    rows[grid.segment == 1] = 3.0
    straight, kept = grid.straightened(rows, ROUNDING)
    assert positions(straight) == [0, 0.25, 1, 0, 1]
    torch.testing.assert_close(straight.interpolate(kept, straight), kept)
    torch.testing.assert_close(grid.interpolate(kept, straight), rows)


def test_crossings_are_where_lines_meet_the_level_and_not_where_they_touch_it():
    rows = torch.tensor([[-1.0, 0.0, 1.0, 2.0, 1e-17], [3.0, 1.0, 2.0, -2.0, -1.0]]).double()
    found, unit = crossings(rows, whole(), 0.0)
    assert unit.tolist() == [0, 3]
    assert found.tolist() == keys(0.25, 0.5).tolist()
    found, unit = crossings(rows, whole(), 1.5)
    assert unit.tolist() == [0, 2, 3]
    assert (found / TICKS).tolist() == pytest.approx([2.5 / 4, 0.5, 0.125])


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=9))
@example([(0.0, 1e-16), (1e-16, 0.0)])
def test_corners_are_those_of_the_upper_envelope(lines):
    """Against all pairs of lines: a corner is a crossing that lies on the maximum."""
    left, right = (torch.tensor(ends).double() for ends in zip(*lines, strict=True))
    found = corners(torch.stack([left, right])[:, None], whole()).double() / TICKS
    scale, truth = float(torch.cat([left, right]).abs().max()), []
    for i in range(len(lines)):
        for j in range(len(lines)):
            gain = (right[j] - left[j]) - (right[i] - left[i])
            a = (left[i] - left[j]) / gain if abs(gain) > 1e-9 * scale else torch.tensor(-1.0)
            if 1e-6 < a < 1 - 1e-6:
                here = torch.lerp(left, right, a)
                if here[i] >= here.max() - 1e-15 * scale:
                    truth.append(float(a))
    for a in truth:
        assert float((found - a).abs().min()) < 1e-6
    for a in found.tolist():
        close = [abs(a - other) for other in [*truth, 0.0, 1.0]]
        assert min(close) < 1e-5


def test_windows_repeat_a_member_in_place_of_padding():
    windows = pooling_windows((4,), (3,), (3,), (2,), (1,), (1,))
    assert windows.tolist() == [[0, 0, 1], [1, 2, 3], [3, 3, 3]]
    assert adaptive_windows((5,), (2,)).tolist() == [[0, 1, 2], [2, 3, 4]]
    assert adaptive_windows((4,), (3,)).tolist() == [[0, 1], [1, 2], [2, 3]]
    square = pooling_windows((3, 4), (1, 2), (2, 2), (2, 2), (0, 0), (2, 1))
    assert square.tolist() == [[0, 1, 8, 9], [2, 3, 10, 11]]
