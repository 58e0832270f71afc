"""Pieces of HTML: what is in the cells, and where the points of the picture lie."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from theory.html import Markup, scatter, table, verdict


def test_cells_are_escaped_unless_they_are_markup():
    text = table([["a<b", "n"], [Markup("<b>x</b>"), "1 & 2"]], numbers=(1,), identifier="t")
    found = ElementTree.fromstring(text.replace("class=number", 'class="number"'))
    assert found.find(".//th").text == "a<b"
    assert found.find(".//td/b").text == "x"
    assert found.findall(".//td")[1].text == "1 & 2"
    assert found.findall(".//td")[1].get("class") == "number"
    assert found.find("table").get("id") == "t"


def test_a_verdict_is_said_in_words():
    assert verdict("NOT MEASURED", " <") == '<span class="not-measured">NOT MEASURED</span> &lt;'


def test_points_lie_on_the_identity_line_where_q_hat_is_q():
    q = np.array([-1.0, 0.0, 3.0])
    found = ElementTree.fromstring(scatter(q, q))
    (x1, y1), (x2, y2) = _ends(found.findall("path")[1].get("d"))
    for circle in found.iter("circle"):
        x, y = float(circle.get("cx")), float(circle.get("cy"))
        assert (y - y1) / (x - x1) == pytest.approx((y2 - y1) / (x2 - x1), rel=1e-2)


def test_larger_values_lie_further_right_and_higher():
    found = ElementTree.fromstring(scatter(np.array([0.0, 1.0]), np.array([0.0, 2.0])))
    low, high = found.iter("circle")
    assert float(high.get("cx")) > float(low.get("cx"))
    assert float(high.get("cy")) < float(low.get("cy"))


@pytest.mark.parametrize("values", [[], [2.0], [np.nan, 1.0]])
def test_few_or_missing_points_still_make_a_picture(values):
    q = np.array(values)
    circles = list(ElementTree.fromstring(scatter(q, q)).iter("circle"))
    assert len(circles) == np.isfinite(q).sum()


def _ends(path):
    return [tuple(map(float, part.split())) for part in path.removeprefix("M").split("L")]
