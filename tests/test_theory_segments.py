"""Pieces on segments: every kink and none beside, exact values, budgets, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import case_named, make_problem, randomize_norms
from oracles import kinks_by_bisection, line_points
from torch import nn

from deep.models import build_model
from theory.errors import InputError
from theory.network import copy_in, evaluating
from theory.segments import Pieces, segment_pieces


def draw(*shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)).double()


def model_named(name):
    torch.manual_seed(1)
    model = {
        "mlp": lambda: build_model("mlp", in_channels=1, image_size=4, width=12, num_classes=3),
        "lenet": lambda: build_model("lenet", in_channels=1, image_size=16, num_classes=3),
        "preact18": lambda: build_model("preact18", in_channels=1, width=4, num_classes=3),
        "cnn": lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        "vgg11": lambda: build_model("vgg11", in_channels=1, width=2, num_classes=3),
        "leaky": lambda: case_named("relu-mlp").build(),
        "prelu": lambda: case_named("relu-conv-no-bias").build(),
    }[name]()
    return randomize_norms(model).double().eval()


SHAPES = {
    "mlp": (1, 4, 4), "lenet": (1, 16, 16), "preact18": (1, 5, 5), "cnn": (1, 8, 8),
    "leaky": (2, 3), "prelu": (1, 6, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_values_between_breakpoints_are_the_networks(name):
    """At random a the polygon equals f(x + a v), to 1e-12 of the largest logit."""
    model, (x, partner) = model_named(name), draw(2, *SHAPES[name])
    with evaluating(model) as f, torch.no_grad():
        pieces = segment_pieces(f, x, partner)
        a = torch.rand(2, 200, generator=torch.Generator().manual_seed(1)).double()
        start, width = pieces.breakpoints[pieces.starts], pieces.breakpoints.diff()[pieces.starts]
        for s in range(2):
            own = pieces.segment == s
            points = torch.cat([a[s], (start + 0.4 * width)[own]])
            rows = (line.expand(len(points), *x.shape[1:]) for line in (x[s], partner[s]))
            truth = f(line_points(*rows, points))
            line = pieces.at(points.expand(2, -1))[s]
            torch.testing.assert_close(line, truth, rtol=0, atol=1e-12 * float(truth.abs().max()))
    assert bool(pieces.complete.all())


@pytest.mark.parametrize("name", ["mlp", "leaky", "prelu", "cnn"])
def test_every_kink_is_found_and_none_beside(name):
    """Against bisection on values alone."""
    model, (x, partner) = model_named(name), draw(2, *SHAPES[name], seed=5)
    with evaluating(model) as f:
        pieces = segment_pieces(f, x, partner)
        for s in range(2):
            truth = kinks_by_bisection(f, x[s], partner[s])
            first, last = int(pieces.offsets[s]), int(pieces.offsets[s + 1]) - 1
            assert len(truth) > 1
            np.testing.assert_allclose(pieces.breakpoints[first + 1 : last], truth, atol=1e-6)


def hinge(x):
    """relu(x_0) in the first logit and −x_0 in the second."""
    return torch.stack([x[:, 0].relu(), -x[:, 0]], 1)


def test_one_unit_in_closed_form():
    """relu along −1 → 3 has its kink at 1/4, slopes 0 and 4."""
    pieces = segment_pieces(hinge, torch.tensor([[-1.0]]).double(), torch.tensor([[3.0]]).double())
    assert pieces.breakpoints.tolist() == [0, 0.25, 1]
    truth = torch.tensor([[0, 1], [0, 0], [3, -3]]).double()
    torch.testing.assert_close(pieces.logits, truth, rtol=0, atol=1e-15)
    torch.testing.assert_close(pieces.slopes, torch.tensor([[0, -4], [4, -4]]).double())
    assert pieces.counts.tolist() == [2]


def test_kinks_of_one_hidden_layer_are_where_units_vanish():
    """a = −(w·x + b)/(w·v), to 1e-13."""
    torch.manual_seed(0)
    layer, last = nn.Linear(6, 40).double(), nn.Linear(40, 2).double()
    x, partner = draw(1, 6)
    pieces = segment_pieces(lambda z: last(layer(z).relu()), x, partner)
    with torch.no_grad():
        at = layer(x)[0] / (layer(x) - layer(partner))[0]
    truth = at[(at > 0) & (at < 1)].sort().values
    torch.testing.assert_close(pieces.breakpoints[1:-1], truth, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [
        (0.0, 1.0, 1),
        (-1.0, 0.0, 1),
        (2.0, 2.0, 1),
        (-1.0, -2.0, 1),
        (0.0, 0.0, 1),
        (-1e-20, 1.0, 1),
    ],
    ids=["kink at 0", "kink at 1", "no way", "dead", "at the kink", "kink at 0 but for rounding"],
)
def test_a_kink_at_an_end_is_none(start, end, counts):
    x, partner = torch.tensor([[start]]).double(), torch.tensor([[end]]).double()
    pieces = segment_pieces(hinge, x, partner)
    assert pieces.counts.tolist() == [counts]
    assert pieces.breakpoints.tolist() == [0, 1]
    assert torch.equal(pieces.logits, hinge(torch.cat([x, partner])))


def test_units_with_the_same_kink_make_one():
    """Also where rounding puts the copies apart."""

    def f(z):
        units = [(scale * z[:, :1]).relu() * k for k, scale in enumerate((1, 3, 1 / 7, 1e3), 1)]
        return torch.cat([sum(units), z], 1)

    pieces = segment_pieces(f, torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double())
    assert pieces.counts.tolist() == [2]
    assert float(pieces.breakpoints[1]) == pytest.approx(1 / 3, abs=1e-13)


def test_kinks_that_the_logits_do_not_feel_are_none():
    """A second layer that is dead all along hides the first; so does a weight of zero."""
    first = nn.Linear(3, 8).double()
    x, partner = draw(3, 3)
    dead = segment_pieces(lambda z: (first(z).relu() - 1e4).relu()[:, :2], x, partner)
    weightless = segment_pieces(lambda z: first(z).relu()[:, :2] * 0.0 + z[:, :2], x, partner)
    assert dead.counts.tolist() == weightless.counts.tolist() == [1, 1, 1]


def test_a_network_without_relu_has_one_piece():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.Flatten(),
                          nn.Linear(8, 3)).double()  # fmt: skip
    x, partner = draw(3, 1, 6, 6)
    with evaluating(model) as f, torch.no_grad():
        pieces = segment_pieces(f, x, partner)
        assert pieces.counts.tolist() == [1, 1, 1]
        torch.testing.assert_close(pieces.logits[::2], f(x))
        torch.testing.assert_close(pieces.logits[1::2], f(partner))


def test_pieces_do_not_depend_on_the_memory_nor_on_the_company():
    """Stretches of a walk join without a seam."""
    model, (x, partner) = model_named("preact18"), draw(2, 1, 5, 5, seed=2)
    with evaluating(model) as f:
        wide = segment_pieces(f, x, partner, rows=4096)
        narrow = segment_pieces(f, x, partner, rows=100)
        alone = segment_pieces(f, x[1:2], partner[1:2])
    assert wide.counts.min() > 50
    assert torch.equal(wide.counts, narrow.counts)
    torch.testing.assert_close(narrow.breakpoints, wide.breakpoints, rtol=0, atol=1e-12)
    torch.testing.assert_close(narrow.logits, wide.logits, rtol=0, atol=1e-13)
    own = slice(int(wide.offsets[1]), int(wide.offsets[2]))
    torch.testing.assert_close(alone.breakpoints, wide.breakpoints[own], rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 7, 20, 10_000])
def test_a_budget_gives_the_first_pieces(budget):
    model, (x, partner) = model_named("cnn"), draw(3, 1, 8, 8)
    with evaluating(model) as f:
        every = segment_pieces(f, x, partner)
        some = segment_pieces(f, x, partner, max_pieces=budget)
    assert torch.equal(some.counts, every.counts.clamp(max=budget))
    assert torch.equal(some.complete, every.counts <= budget)
    for s in range(3):
        first, length = int(every.offsets[s]), int(some.offsets.diff()[s])
        own = slice(int(some.offsets[s]), int(some.offsets[s + 1]))
        torch.testing.assert_close(
            some.breakpoints[own], every.breakpoints[first : first + length], rtol=0, atol=1e-12
        )
        torch.testing.assert_close(some.logits[own], every.logits[first : first + length])


def test_backwards_is_the_way_back():
    model, (x, partner) = model_named("mlp"), draw(4, 1, 4, 4)
    with evaluating(model) as f:
        there, back = segment_pieces(f, x, partner).backwards(), segment_pieces(f, partner, x)
        torch.testing.assert_close(there.breakpoints, back.breakpoints, rtol=0, atol=1e-12)
        torch.testing.assert_close(there.logits, back.logits)
        assert torch.equal(there.counts, back.counts)
        with pytest.raises(InputError, match="raise max_pieces"):
            segment_pieces(f, x, partner, max_pieces=2).backwards()


def test_at_continues_the_last_piece_beyond_what_was_covered():
    pieces = Pieces(
        torch.tensor([0.0, 0.25, 0.5]).double(), torch.tensor([0, 3]),
        torch.tensor([[0.0], [1.0], [0.0]]).double(),
    )  # fmt: skip
    assert not bool(pieces.complete.any())
    a = torch.tensor([[0.0, 0.125, 0.25, 0.5, 1.0]]).double()
    assert pieces.at(a)[0, :, 0].tolist() == [0, 0.5, 1, 0, -2]


def test_pieces_in_single_precision_models_come_from_a_copy():
    model = build_model("mlp", in_channels=1, image_size=2, width=4, num_classes=2)
    x, partner = draw(2, 1, 2, 2)
    with evaluating(copy_in(model, torch.float64)) as f:
        assert segment_pieces(f, x, partner).logits.dtype == torch.float64
    with evaluating(model) as f, pytest.raises(InputError, match="breakpoints need float64"):
        segment_pieces(f, x.float(), partner.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(0, 3).double(), "partner": torch.zeros(0, 3).double()}, "at least one"),
        ({"x": torch.full((2, 3), torch.nan).double()}, "infinite values or NaN"),
        (
            {
                "x": torch.zeros(2**16 + 1, 1).double(),
                "partner": torch.zeros(2**16 + 1, 1).double(),
            },
            "65537 segments at once",
        ),
        ({"max_pieces": 0}, "max_pieces is 0"),
        ({"rows": 1}, "rows is 1"),
        ({"f": lambda z: z.sum(1)}, "one row of logits an example"),
        ({"f": lambda z: z * 1e308 * 10}, "logits are infinite or NaN"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    good = {"f": lambda z: z.relu(), "x": torch.ones(2, 3).double(),
            "partner": -torch.ones(2, 3).double()}  # fmt: skip
    call = {**good, **change}
    f, x, partner = call.pop("f"), call.pop("x"), call.pop("partner")
    with pytest.raises(InputError, match=message) as caught:
        segment_pieces(f, x, partner, **call)
    assert "\n" not in str(caught.value)


def test_crowded_kinks_are_told_apart_down_to_1e_13():
    """20 kinks within 1e-11 come out one by one with any memory; within 1e-14 they are one."""
    for width, counts in ((1e-11, 21), (1e-14, 2)):
        levels = 0.5 + width * torch.linspace(0, 1, 20).double()
        for rows in (4, 1024):
            pieces = segment_pieces(
                lambda z, levels=levels: (z - levels).relu() * 1e3,
                torch.zeros(1, 1).double(), torch.ones(1, 1).double(), rows=rows,
            )  # fmt: skip
            assert pieces.counts.tolist() == [counts]


def test_nothing_of_the_model_is_changed():
    model, (x, partner) = model_named("vgg11").train(), draw(2, 1, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = x.clone()
    with evaluating(model) as f:
        segment_pieces(f, x, partner, max_pieces=5)
    assert model.training
    assert torch.equal(x, kept)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_transformer_is_refused_by_the_operation():
    problem = make_problem(case_named("transformer"))
    with evaluating(problem.model) as f, pytest.raises(InputError, match="exact pieces need"):
        segment_pieces(f, problem.x, problem.x.flip(0))


def test_the_network_sees_no_more_than_twice_the_rows():
    seen = []
    weights = torch.randn(4, 30, 30, generator=torch.Generator().manual_seed(0)).double()

    def f(z):
        for weight in weights:
            z = F.relu(z @ weight)
            seen.append(len(z.rows))
        return z

    x, partner = draw(5, 30)
    pieces = segment_pieces(f, x, partner, rows=50)
    assert int(pieces.counts.sum()) > 200
    assert max(seen) <= 100
