"""The vertices of piecewise affine curves over segments, and where new ones must go.

A curve is known by its values at vertices a_0 < … < a_m in [0, 1] and affine between them. Here is
what follows from those values alone: interpolation onto further vertices, the places where a unit
passes the kink of its activation, and the corners of a maximum of several curves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Positions are integers, so that equal vertices are equal: a = tick / 2^46, and a vertex's key is
# segment · 2^47 + tick, which sorts by segment and then by position.
TICKS = 1 << 46
MOST_SEGMENTS = 1 << 16  # whose keys fit into 63 bits
_MERGED = 7  # ticks, 1e-13: vertices no further apart are one
ROUNDING = 4 * torch.finfo(torch.float64).eps  # of the largest value of its row: taken for zero


class TooManyVertices(Exception):
    """The curves outgrew the memory set aside for them; cut the segments shorter."""


@dataclass(frozen=True)
class Grid:
    """The vertices of a batch of segments, in order.

    Attributes:
        keys: segment · 2^47 + a · 2^46 of each vertex, ascending; int64.
        segments: Number of segments; each has at least its two ends.
        limit: Most vertices that may be held.
    """

    keys: Tensor
    segments: int
    limit: int

    @classmethod
    def between(cls, left: Tensor, right: Tensor, limit: int) -> "Grid":
        """One segment for each pair of ticks, with no vertex but its ends."""
        first = torch.arange(len(left), device=left.device) * (2 * TICKS)
        return cls(torch.stack([first + left, first + right], 1).flatten(), len(left), limit)

    @property
    def segment(self) -> Tensor:
        """The segment of each vertex."""
        return self.keys // (2 * TICKS)

    @property
    def ticks(self) -> Tensor:
        """a · 2^46 of each vertex."""
        return self.keys % (2 * TICKS)

    def inserted(self, keys: Tensor) -> "Grid":
        """The grid with further vertices; those within 1e-13 of another are left out.

        Raises:
            TooManyVertices: If they exceed the limit.
        """
        every = torch.cat([self.keys, keys]).unique()
        if len(every) == len(self.keys):
            return self
        old = torch.isin(every, self.keys, assume_unique=True)
        apart = every.diff() > _MERGED
        kept = old.clone()
        # The first and the last vertex are ends of segments, hence old.
        kept[1:-1] |= apart[:-1] & (apart[1:] | ~old[2:])
        if int(kept.sum()) > self.limit:
            raise TooManyVertices
        return Grid(every[kept], self.segments, self.limit)

    def nearest(self, keys: Tensor) -> Tensor:
        """The vertex that stands for each of the positions."""
        above = torch.searchsorted(self.keys, keys).clamp(1, len(self.keys) - 1)
        return above - (keys - self.keys[above - 1] < self.keys[above] - keys).long()

    def interpolate(self, rows: Tensor, coarser: "Grid") -> Tensor:
        """Rows given on a coarser grid, as new rows on this one."""
        left = torch.searchsorted(coarser.keys, self.keys, right=True) - 1
        fine = rows.index_select(0, left)
        new = (coarser.keys[left] != self.keys).nonzero().squeeze(1)
        if len(new):
            below = left[new]
            step = (self.keys[new] - coarser.keys[below]).to(rows.dtype)
            step = step / (coarser.keys[below + 1] - coarser.keys[below])
            step = step.reshape(-1, *(1,) * (rows.ndim - 1))
            fine[new] = torch.lerp(fine[new], rows.index_select(0, below + 1), step)
        return fine

    def straightened(self, rows: Tensor, rtol: float) -> "tuple[Grid, Tensor]":
        """Leaves out the vertices at which no unit has a kink: (grid, rows).

        Neighbours are not judged in the same round, so that what a round leaves out is missed by
        `rtol` times the segment's largest value at most, however long the run of weak kinks.
        """
        keys, segment = self.keys, self.segment
        rows_flat = rows.reshape(len(rows), -1)
        largest = rows.new_zeros(self.segments).scatter_reduce_(
            0, segment, torch.linalg.vector_norm(rows_flat, math.inf, dim=1), "amax"
        )
        while True:
            share = ((keys[1:-1] - keys[:-2]).double() / (keys[2:] - keys[:-2]))[:, None]
            missed = torch.lerp(rows_flat[:-2], rows_flat[2:], share).sub_(rows_flat[1:-1])
            size = torch.linalg.vector_norm(missed, math.inf, dim=1)
            weak = torch.zeros_like(segment, dtype=torch.bool)
            weak[1:-1] = (segment[2:] == segment[:-2]) & (size <= rtol * largest[segment[1:-1]])
            place = torch.arange(len(keys), device=keys.device)
            last_strong = torch.where(weak, -1, place).cummax(0).values
            kept = ~weak | ((place - last_strong) % 2 == 0)
            if bool(kept.all()):
                grid = self if len(keys) == len(self.keys) else replace(self, keys=keys)
                return grid, rows_flat.reshape(-1, *rows.shape[1:])
            keys, segment, rows_flat = keys[kept], segment[kept], rows_flat[kept]

    def between_neighbours(self, k: Tensor, share: Tensor) -> Tensor:
        """The keys at shares of the way from the vertices k to the next."""
        return self.keys[k] + (share * (self.keys[k + 1] - self.keys[k])).round().long()


def crossings(rows: Tensor, grid: Grid, level: float) -> tuple[Tensor, Tensor]:
    """Where units pass a level between two vertices.

    Args:
        rows: Values, one row a vertex.
        grid: The vertices.
        level: What is passed.

    Returns:
        (keys, units): the position of each crossing, and the unit's place in the flattened row.
        Passing means to be above the level by more than rounding, and then below, or conversely.
    """
    z = rows.reshape(len(rows), -1)
    noise = ROUNDING * (torch.linalg.vector_norm(z, math.inf, dim=1, keepdim=True) + abs(level))
    above, below = z > level + noise, z < level - noise
    passes = (above[:-1] & below[1:]) | (below[:-1] & above[1:])
    passes &= (grid.segment.diff() == 0)[:, None]
    k, unit = passes.nonzero(as_tuple=True)
    start, end = z[k, unit] - level, z[k + 1, unit] - level
    return grid.between_neighbours(k, start / (start - end)), unit


def corners(values: Tensor, grid: Grid) -> Tensor:
    """Where the maximum over the last axis passes from one curve to another between two vertices.

    Between neighbouring vertices the maximum of affine functions is their upper envelope; it is
    followed from its left end from one leading line to the next.

    Args:
        values: (vertices, windows, members).
        grid: The vertices.

    Returns:
        Keys of the corners.
    """
    noise = ROUNDING * torch.linalg.vector_norm(values.flatten(1), math.inf, dim=1)
    noise = torch.maximum(noise[:-1], noise[1:])[:, None]
    left, right = values[:-1], values[1:]
    best_left, best_right = left.amax(-1), right.amax(-1)
    # The line that leads just after the left vertex: of those on top, the one that ends highest.
    on_top = left >= (best_left - noise)[..., None]
    leader = torch.where(on_top, right, -math.inf).argmax(-1)
    led = right.gather(-1, leader[..., None]).squeeze(-1)
    changes = (led < best_right - noise) & (grid.segment.diff() == 0)[:, None]
    k, window = changes.nonzero(as_tuple=True)
    left, right, leader = left[k, window], right[k, window], leader[k, window]
    goal = (best_right - noise)[k, window]
    found = [grid.keys[:0]]
    while len(k):  # no line leads twice
        here, there = left.gather(1, leader[:, None]), right.gather(1, leader[:, None])
        gain = (right - left) - (there - here)
        share = torch.where(gain > 0, ((here - left) / gain).clamp(min=0), math.inf)
        share[right <= there] = math.inf  # ends no higher, so it does not lead before the end
        first, leader = share.min(1)
        found.append(grid.between_neighbours(k, first.clamp(max=1)))
        going = right.gather(1, leader[:, None]).squeeze(1) < goal
        k, left, right, leader, goal = (t[going] for t in (k, left, right, leader, goal))
    return torch.cat(found)


def pooling_windows(
    sizes: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Flat positions of what max-pooling pools, shape (windows, members)."""
    axes = [
        torch.arange(m)[:, None] * s - p + torch.arange(k) * d
        for m, k, s, p, d in zip(outputs, kernel, stride, padding, dilation, strict=True)
    ]
    return _flat_windows(axes, sizes)


def adaptive_windows(sizes: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """The same for adaptive max-pooling; the last members of short windows repeat."""
    axes = []
    for n, m in zip(sizes, outputs, strict=True):
        start = torch.arange(m) * n // m
        end = -((-torch.arange(1, m + 1) * n) // m)
        longest = int((end - start).max())
        axes.append(torch.minimum(start[:, None] + torch.arange(longest), end[:, None] - 1))
    return _flat_windows(axes, sizes)


def _flat_windows(axes: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Combines the axes; members in the padding are replaced by one that is not."""
    flat = torch.zeros(1, 1, dtype=torch.long)
    valid = torch.ones(1, 1, dtype=torch.bool)
    for positions, size in zip(axes, sizes, strict=True):
        inside = ((positions >= 0) & (positions < size))[None, :, None, :]
        flat = flat[:, None, :, None] * size + positions[None, :, None, :]
        valid = valid[:, None, :, None] & inside
        flat, valid = (t.flatten(2).flatten(0, 1) for t in (flat, valid))
    real = flat.gather(1, valid.long().argmax(1, keepdim=True))
    return torch.where(valid, flat, real)
