"""Random crops and flips, batched on the data's device and drawn by counters.

What happens to an example depends on the seed, the epoch and the example's number alone: not on its
batch, on how many processes share the batch, on the device, or on where a run was interrupted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), its constants as signed 64-bit numbers.
_GAMMA, _MIX_1, _MIX_2 = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mixed(counters: Tensor) -> Tensor:
    """SplitMix64's output function of (counter + 1)·γ, with 64-bit wrap-around."""
    z = (counters + 1) * _GAMMA
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def uniforms(
    samples: Int[Tensor, " batch"], count: int, *, seed: int, epoch: int
) -> Float[Tensor, "count batch"]:
    """`count` numbers in [0, 1) for each example, a function of (seed, epoch, example) alone.

    Args:
        samples: Numbers of the examples in the data set, int64.
        count: How many numbers each example needs.
        seed: Of the run.
        epoch: From 0.

    Returns:
        float64, on the device of `samples`.
    """
    key = _mixed(torch.tensor(seed, device=samples.device))
    key = _mixed(_mixed(key + epoch) + samples)
    draws = _mixed(key + torch.arange(count, device=samples.device)[:, None])
    return _shifted(draws, 11).double() / 2**53


def crop_and_flip(
    x: Float[Tensor, "batch channels height width"],
    samples: Int[Tensor, " batch"],
    epoch: int,
    *,
    seed: int,
    padding: int,
    flip: bool,
    fill: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Each image padded on all sides, cut back to its size at a random place, mirrored or not.

    Offsets are uniform on 0 … 2·padding for both axes; the mirror image (left to right) has
    probability ½. This is the usual augmentation of CIFAR (He et al., CVPR 2016, with padding 4).

    Args:
        x: Images.
        samples: Their numbers in the data set.
        epoch: From 0.
        seed: Of the run.
        padding: Pixels added on each side, 0 for no crop.
        flip: Whether to mirror.
        fill: What the padding holds, a value a channel (black in the units of x).
    """
    batch, channels, height, width = x.shape
    u = uniforms(samples, 3, seed=seed, epoch=epoch)
    top, left = (u[:2] * (2 * padding + 1)).long()
    columns = torch.arange(width, device=x.device).expand(batch, -1)
    if flip:
        columns = torch.where(u[2, :, None] < 0.5, width - 1 - columns, columns)
    columns = columns + left[:, None]
    rows = torch.arange(height, device=x.device) + top[:, None]
    padded = fill[:, None, None].repeat(batch, 1, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    flat = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).reshape(batch, 1, -1)
    return padded.flatten(2).gather(2, flat.expand(-1, channels, -1)).view_as(x)
