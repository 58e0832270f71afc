"""Images rotated, sheared and zoomed: the test sets of "generalisation to novel deformations".

A deformation is a linear map about the image's centre c. The value at pixel p (row, column) of the
deformed image is that of the original at c + M (p − c), by nearest neighbour: where this point lies
beyond the centres of the outermost pixels, the fill value. With an angle φ and a zoom z,

    rotation  M = [[cos φ, sin φ], [−sin φ, cos φ]]   counter-clockwise as the image is seen
    shear     M = [[1, −tan φ], [0, 1]]               "tangent"
              M = [[1, −sin φ], [0, cos φ]]           "sine"
    zoom      M = z·1                                 z < 1 enlarges the centre, z > 1 pads

Verma et al., "Manifold Mixup", ICML 2019, give shears by angles, ±28.6° and ±57.3°, which are 0.5
and 1 radian. "tangent", the default, is the shear by an angle of geometry: it tilts rows by that
angle and keeps areas. "sine" tilts rows by the same angle and besides stretches the width by
1/cos φ; image libraries of that time (Keras, torchsample, whose bound is in radians) have this
form. The paper does not say which it means.

Nearest neighbour is floor(t + ½) per coordinate in float64, with t raised by 1e-9: a point midway
between two pixels takes the one below or to the right, whatever rounding made of it. Points within
1e-9 of the outermost centres are inside. Apart from such points the result is that of
`scipy.ndimage.affine_transform(order=0, mode="constant")`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deep.augment import uniforms
from theory.errors import InputError

Kind = Literal["rotation", "shear", "zoom"]
Shear = Literal["tangent", "sine"]
_TIE = 1e-9  # in pixels; rounding in float64 stays far below


@dataclass(frozen=True)
class Deformation:
    """A law of deformations: each image has its own, uniform between two bounds.

    Attributes:
        name: Of the test set.
        kind: Which map.
        low: Smallest angle in degrees, or smallest zoom z.
        high: The largest.
    """

    name: str
    kind: Kind
    low: float
    high: float

    @property
    def spread(self) -> str:
        """The law in words."""
        if self.kind == "zoom":
            return f"z = {self.low:g}"
        return f"U({self.low:g}°, {self.high:g}°)"


DEFORMATIONS = (
    Deformation("rotation 20", "rotation", -20, 20),
    Deformation("rotation 40", "rotation", -40, 40),
    Deformation("shear 28.6", "shear", -28.6, 28.6),
    Deformation("shear 57.3", "shear", -57.3, 57.3),
    Deformation("zoom in 60%", "zoom", 0.6, 0.6),
    Deformation("zoom in 80%", "zoom", 0.8, 0.8),
    Deformation("zoom out 120%", "zoom", 1.2, 1.2),
    Deformation("zoom out 140%", "zoom", 1.4, 1.4),
)

PUBLISHED_SOURCE = (
    'slides of Zou, Verma et al., "MixupE", UAI 2023: table "Robustness – Generalize to Novel '
    'Deformations", test accuracy in % of models trained on CIFAR-100, "Ours" being MixupE'
)
PUBLISHED_COLUMNS = ("Mixup", "Manifold Mixup", "Ours")
PUBLISHED: dict[str, tuple[float, float, float]] = {
    "rotation 20": (56.48, 60.08, 62.23),
    "rotation 40": (36.78, 42.13, 43.08),
    "shear 28.6": (60.01, 62.85, 63.94),
    "shear 57.3": (39.70, 44.27, 43.87),
    "zoom in 60%": (13.12, 11.49, 15.66),
    "zoom in 80%": (50.47, 52.70, 54.22),
    "zoom out 120%": (61.62, 63.59, 61.39),
    "zoom out 140%": (42.02, 45.29, 36.58),
}


def deform(
    x: Float[Tensor, "batch channels height width"],
    deformation: Deformation,
    samples: Int[Tensor, " batch"],
    *,
    fill: Float[Tensor, " channels"],
    seed: int = 0,
    shear: Shear = "tangent",
) -> Float[Tensor, "batch channels height width"]:
    """Images deformed, each by its own draw.

    An image's draw depends on the seed and its number alone, not on batches or the device. It is
    the same share of the way from `low` to `high` for every deformation.

    Nearest neighbour only moves values, so that it makes no difference whether images are deformed
    in pixel units or normalised, except for the fill: black is 0 before normalisation and
    −mean/std after it.

    Args:
        x: Images, in any units.
        deformation: Which law.
        samples: The images' numbers in their set, int64, on the same device.
        fill: Value outside the image, one a channel, in the units of x.
        seed: Of the draws.
        shear: Which form of shear.

    Raises:
        InputError: As `linear_maps`.
    """
    share = uniforms(samples, 1, seed=seed, epoch=0)[0]
    amounts = deformation.low + (deformation.high - deformation.low) * share
    return warp(x, linear_maps(deformation.kind, amounts, shear), fill)


def linear_maps(
    kind: Kind, amounts: Float[Tensor, " batch"], shear: Shear = "tangent"
) -> Float[Tensor, "batch 2 2"]:
    """The matrices M of the deformations, on (row, column), in float64.

    Args:
        kind: Which map.
        amounts: Angles in degrees, or zooms z.
        shear: Which form of shear.

    Raises:
        InputError: If a zoom is not positive, or a shear's angle not within (−90°, 90°).
    """
    amounts = amounts.double()
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    if kind == "zoom":
        if not bool((amounts > 0).all()):
            raise InputError("a zoom is zero, negative or NaN: zooms are positive")
        rows = [amounts, zero, zero, amounts]
    elif kind == "rotation":
        cos, sin = amounts.deg2rad().cos(), amounts.deg2rad().sin()
        rows = [cos, sin, -sin, cos]
    else:
        if not bool((amounts.abs() < 90).all()):
            raise InputError("an angle of shear reaches 90°: stay below")
        angle = amounts.deg2rad()
        rows = (
            [one, -angle.tan(), zero, one]
            if shear == "tangent"
            else [one, -angle.sin(), zero, angle.cos()]
        )
    return torch.stack(rows, 1).view(-1, 2, 2)


def warp(
    x: Float[Tensor, "batch channels height width"],
    maps: Float[Tensor, "batch 2 2"],
    fill: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Each image seen through its linear map about its centre, see the module's first lines.

    Args:
        x: Images.
        maps: M of each, on (row, column) in pixels.
        fill: Value outside the image, one a channel.
    """
    channels, height, width = x.shape[1:]
    size = torch.tensor([height, width], device=x.device)
    centre = (size.double() - 1) / 2
    grid = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in (height, width)))
    points = centre + (grid - centre) @ maps.to(x.device, torch.float64).transpose(1, 2)
    inside = ((points >= -_TIE) & (points <= size - 1 + _TIE)).all(2)[:, None]
    rows, columns = (points + 0.5 + _TIE).floor().long().clamp(min=0).unbind(2)
    rows, columns = rows.clamp(max=height - 1), columns.clamp(max=width - 1)
    flat = (rows * width + columns)[:, None].expand(-1, channels, -1)
    seen = x.flatten(2).gather(2, flat)
    return torch.where(inside, seen, fill.to(x)[:, None]).view_as(x)
