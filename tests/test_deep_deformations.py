"""Deformed images are scipy's, and those worked out by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from deep.deformations import DEFORMATIONS, PUBLISHED, Deformation, deform, linear_maps, warp
from theory.errors import InputError

NINE = torch.arange(1.0, 10).view(1, 1, 3, 3)
BLACK = torch.zeros(1)


def images(samples=9, channels=2, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, channels, height, width, generator=generator) + 1


def by_scipy(x, maps):
    """Image by image, channel by channel."""
    centre = (np.array(x.shape[2:]) - 1) / 2
    out = np.empty(x.shape, np.float32)
    for i, j in np.ndindex(*x.shape[:2]):
        m = maps[i].numpy()
        out[i, j] = ndimage.affine_transform(
            x[i, j].numpy(), m, centre - m @ centre, order=0, mode="constant", cval=0
        )
    return torch.from_numpy(out)


def in_doubt(x, maps):
    """Where a coordinate is a tie, or on the border, up to rounding: pixel by pixel."""
    height, width = x.shape[2:]
    found = np.zeros((len(x), height, width), bool)
    for n, r, c in np.ndindex(*found.shape):
        centre = np.array([(height - 1) / 2, (width - 1) / 2])
        point = centre + maps[n].numpy() @ (np.array([r, c]) - centre)
        ties = np.abs(point - np.floor(point) - 0.5) < 1e-7
        border = (np.abs(point) < 1e-7) | (np.abs(point - np.array([height - 1, width - 1])) < 1e-7)
        found[n, r, c] = (ties | border).any()
    return torch.from_numpy(found)


@pytest.mark.parametrize(
    ("kind", "amount", "expected"),
    [
        ("rotation", 90.0, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),
        ("rotation", -90.0, [[7, 4, 1], [8, 5, 2], [9, 6, 3]]),
        ("rotation", 180.0, [[9, 8, 7], [6, 5, 4], [3, 2, 1]]),
        # corners fall at distance √2, outside; edges' midpoints at (±0.71, ∓0.71), on corners
        ("rotation", 45.0, [[0, 3, 0], [1, 5, 9], [0, 7, 0]]),
        ("shear", 45.0, [[4, 2, 0], [7, 5, 3], [0, 8, 6]]),  # column −1 reads one row below
        ("zoom", 0.6, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),  # coordinates 0.4, 1, 1.6
        ("zoom", 0.4, [[5, 5, 5], [5, 5, 5], [5, 5, 5]]),  # 0.6, 1, 1.4
        ("zoom", 0.5, [[5, 5, 6], [5, 5, 6], [8, 8, 9]]),  # ties at 0.5 and 1.5 go up
        ("zoom", 1.2, [[0, 0, 0], [0, 5, 0], [0, 0, 0]]),  # −0.2 lies beyond the first centre
    ],
)
def test_three_by_three_by_hand(kind, amount, expected):
    found = warp(NINE, linear_maps(kind, torch.tensor([amount])), BLACK)
    assert found[0, 0].tolist() == expected


def test_sine_form_stretches_the_width_besides():
    """At 60° column ±1 reads (∓0.87, ±0.5): rows one off, the tie in columns goes up."""
    found = warp(NINE, linear_maps("shear", torch.tensor([60.0]), "sine"), BLACK)
    assert found[0, 0].tolist() == [[5, 2, 0], [8, 5, 3], [0, 8, 6]]


@pytest.mark.parametrize("size", [(32, 32), (31, 31), (5, 8)])
def test_integer_maps_are_scipys_pixel_for_pixel(size):
    maps = [[[1, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]],
            [[1, -1], [0, 1]], [[1, 2], [0, 1]], [[2, 0], [0, 2]], [[3, 0], [0, 3]],
            [[-1, 0], [0, 1]]]  # fmt: skip
    maps = torch.tensor(maps, dtype=torch.float64)
    maps = torch.stack([m for m in maps if not is_between_pixels(m, size)])
    assert len(maps) >= 4
    x = images(len(maps), height=size[0], width=size[1])
    assert torch.equal(warp(x, maps, torch.zeros(2)), by_scipy(x, maps))


def is_between_pixels(m, size):
    """Whether an integer map puts pixels midway between two, as a quarter turn of 5 × 8 does."""
    centre = (np.array(size) - 1) / 2
    offset = centre - m.numpy() @ centre
    return bool((offset != np.round(offset)).any())


@pytest.mark.parametrize("angle", [90.0, 180.0, 270.0, -90.0])
def test_quarter_turns_are_numpys(angle):
    x = images(3, height=7, width=7)
    found = warp(x, linear_maps("rotation", torch.full((3,), angle)), torch.zeros(2))
    np.testing.assert_array_equal(found, np.rot90(x.numpy(), round(angle / 90), (2, 3)))


@pytest.mark.parametrize("form", ["tangent", "sine"])
@pytest.mark.parametrize("kind", ["rotation", "shear", "zoom"])
def test_random_maps_are_scipys_except_where_rounding_decides(kind, form):
    generator = torch.Generator().manual_seed(4)
    u = torch.rand(9, generator=generator, dtype=torch.float64)
    maps = linear_maps(kind, 0.5 + u if kind == "zoom" else 120 * u - 60, form)
    x = images(height=17, width=24)
    doubt = in_doubt(x, maps)
    assert doubt.float().mean() < 0.09  # a shear leaves the outermost columns (2 of 24) there
    differs = (warp(x, maps, torch.zeros(2)) != by_scipy(x, maps)).any(1)
    assert not (differs & ~doubt).any()


@pytest.mark.parametrize("z", [0.6, 0.8, 1.2, 1.4])
def test_zooms_of_the_table_are_scipys_except_where_rounding_decides(z):
    x, maps = images(1), linear_maps("zoom", torch.tensor([z], dtype=torch.float64))
    differs = (warp(x, maps, torch.zeros(2)) != by_scipy(x, maps)).any(1)
    assert not (differs & ~in_doubt(x, maps)).any()


def test_zoom_in_enlarges_the_centre_and_zoom_out_pads():
    x = torch.zeros(1, 1, 32, 32)
    x[..., 8:24, 8:24] = 1
    areas = {}
    for deformation in DEFORMATIONS[4:]:
        found = deform(x, deformation, torch.arange(1), fill=torch.tensor([-1.0]))
        areas[deformation.name] = (found == 1).sum().item(), (found == -1).sum().item()
    assert areas["zoom in 60%"][0] > areas["zoom in 80%"][0] > 256
    assert 256 > areas["zoom out 120%"][0] > areas["zoom out 140%"][0] > 0
    assert areas["zoom in 60%"][1] == areas["zoom in 80%"][1] == 0
    # 31/z + 1 pixels across see the image, rounded to the even number below
    assert areas["zoom out 120%"][1] == 32**2 - 26**2
    assert areas["zoom out 140%"][1] == 32**2 - 22**2


@pytest.mark.parametrize("kind", ["rotation", "shear", "zoom"])
def test_identity_is_exact(kind):
    x, amount = images(), float(kind == "zoom")
    same = Deformation("none", kind, amount, amount)
    assert torch.equal(deform(x, same, torch.arange(9), fill=torch.zeros(2)), x)


@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=lambda d: d.name)
def test_batches_do_not_matter_and_seeds_do(deformation):
    x, numbers, fill = images(), torch.arange(9), torch.zeros(2)
    whole = deform(x, deformation, numbers, fill=fill)
    parts = [
        deform(x[i], deformation, numbers[i], fill=fill) for i in ([4, 2], [0, 8, 1], [3, 5, 6, 7])
    ]
    order = torch.tensor([4, 2, 0, 8, 1, 3, 5, 6, 7])
    assert torch.equal(torch.cat(parts), whole[order])
    other = deform(x, deformation, numbers, fill=fill, seed=1)
    assert torch.equal(other, whole) == (deformation.kind == "zoom")


def test_angles_are_uniform_between_the_bounds():
    """A picture of columns' numbers shows sin φ in a pixel above its centre."""
    x = torch.arange(101.0).view(1, 1, 1, 101).expand(500, 1, 101, 101)
    law = Deformation("turn", "rotation", -20, 40)
    found = deform(x, law, torch.arange(500), fill=torch.tensor([-1.0]))
    # 40 rows above the centre, rotation by φ reads column 50 + 40 sin φ, to half a pixel
    angles = ((found[:, 0, 10, 50] - 50) / 40).arcsin().rad2deg().numpy()
    assert -21 < angles.min() < -18
    assert 38 < angles.max() < 41
    assert angles.mean() == pytest.approx(10, abs=4 * 17.3 / 500**0.5)
    assert angles.std() == pytest.approx(60 / 12**0.5, rel=0.08)


def test_fill_of_normalised_images_is_that_of_pixels_normalised():
    """Deformed before normalisation with black, or after with −mean/std: the same images."""
    mean, std = torch.tensor([0.3, 0.6]), torch.tensor([0.2, 0.4])
    pixels, numbers = images() - 1, torch.arange(9)
    x = (pixels - mean[:, None, None]) / std[:, None, None]
    for deformation in DEFORMATIONS:
        slow = deform(pixels, deformation, numbers, fill=torch.zeros(2))
        slow = (slow - mean[:, None, None]) / std[:, None, None]
        assert torch.equal(deform(x, deformation, numbers, fill=-mean / std), slow)


def test_published_numbers_stand_for_the_eight_test_sets():
    assert list(PUBLISHED) == [deformation.name for deformation in DEFORMATIONS]
    assert {round(np.deg2rad(d.high), 2) for d in DEFORMATIONS if d.kind == "shear"} == {0.5, 1.0}


@pytest.mark.parametrize(
    ("kind", "amount", "message"),
    [("zoom", 0.0, "zooms are positive"), ("zoom", float("nan"), "zooms are positive"),
     ("shear", 90.0, "reaches 90°"), ("shear", -130.0, "reaches 90°")],
)  # fmt: skip
def test_bad_input_is_named(kind, amount, message):
    with pytest.raises(InputError, match=message):
        linear_maps(kind, torch.tensor([amount]))
