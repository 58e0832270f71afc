"""The pieces of a ReLU network on segments between inputs, exactly.

A network of affine layers, ReLU and max-pooling is piecewise affine, so on a segment
a ↦ f(x + a (x' − x)), a in [0, 1], it is a polygon: `segment_pieces` finds its corners and the
logits there, at a cost of about one forward pass a corner (`theory.curves`).

Corners are told apart down to 1e-13 in a, and a corner counts where leaving it out would change a
logit by more than 1e-13 of the segment's largest. Where hidden units have kinks that the logits do
not feel, there is none.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from theory.curves import MOST_SEGMENTS, TICKS, Curves, Grid, TooManyVertices
from theory.errors import InputError
from theory.network import Function

_FELT = 1e-13
_PROBE = TICKS // 64  # of the first segment, to see how dense the vertices lie


@dataclass(frozen=True)
class Pieces:
    """Polygons a ↦ f(x + a (x' − x)), one a segment, in flat lists.

    Attributes:
        breakpoints: Values of a where the slope changes, from 0 to the end of what was covered,
            ascending in each segment; the ends are listed too, also where there is no kink.
        offsets: Segment s has the corners offsets[s] … offsets[s + 1] − 1.
        logits: f at each corner.
    """

    breakpoints: Float[Tensor, " corners"]
    offsets: Int[Tensor, " bounds"]
    logits: Float[Tensor, "corners classes"]

    def __len__(self) -> int:
        """Number of segments."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int[Tensor, " segments"]:
        """Pieces of each segment: the linear regions that it crosses."""
        return self.offsets.diff() - 1

    @property
    def covered(self) -> Float[Tensor, " segments"]:
        """The last a that each polygon reaches: 1, or less where a budget ended it."""
        return self.breakpoints[self.offsets[1:] - 1]

    @property
    def complete(self) -> Bool[Tensor, " segments"]:
        """Whether each polygon reaches a = 1, so that its pieces are all there are."""
        return self.covered == 1

    @cached_property
    def starts(self) -> Int[Tensor, " pieces"]:
        """The corner at which each piece begins; it ends at the next."""
        last = torch.zeros(len(self.breakpoints), dtype=torch.bool, device=self.offsets.device)
        last[self.offsets[1:] - 1] = True
        return (~last).nonzero().squeeze(1)

    @property
    def segment(self) -> Int[Tensor, " pieces"]:
        """The segment of each piece."""
        every = torch.arange(len(self), device=self.offsets.device)
        return every.repeat_interleave(self.counts)

    @property
    def slopes(self) -> Float[Tensor, "pieces classes"]:
        """∂f/∂a on each piece."""
        width = self.breakpoints[self.starts + 1] - self.breakpoints[self.starts]
        return (self.logits[self.starts + 1] - self.logits[self.starts]) / width[:, None]

    def at(self, a: Float[Tensor, "segments points"]) -> Float[Tensor, "segments points classes"]:
        """The logits at any a up to `covered`; the last piece is continued beyond it."""
        lines = []
        width = self.breakpoints.diff()
        for s, points in enumerate(a.contiguous()):
            first, last = int(self.offsets[s]), int(self.offsets[s + 1]) - 1
            right = torch.searchsorted(self.breakpoints[first : last + 1], points) + first
            right = right.clamp(first + 1, last)
            share = ((points - self.breakpoints[right - 1]) / width[right - 1])[:, None]
            lines.append(torch.lerp(self.logits[right - 1], self.logits[right], share))
        return torch.stack(lines)

    def backwards(self) -> "Pieces":
        """The same polygons from x' to x; all of them must be complete."""
        if not bool(self.complete.all()):
            raise InputError("some segments are covered in part: raise max_pieces to turn them")
        order = torch.arange(len(self.breakpoints), device=self.offsets.device)
        lengths = self.offsets.diff()
        first, last = self.offsets[:-1], self.offsets[1:] - 1
        turned = (first + last).repeat_interleave(lengths) - order
        return Pieces(1 - self.breakpoints[turned], self.offsets, self.logits[turned])


def segment_pieces(
    f: Function,
    x: Float[Tensor, "segments *dims"],
    partner: Float[Tensor, "segments *dims"],
    *,
    max_pieces: int | None = None,
    rows: int = 1024,
) -> Pieces:
    """The polygons a ↦ f(x + a (partner − x)) on [0, 1].

    Segments are walked from a = 0 in stretches whose vertices fit into `rows`; the result does not
    depend on them. With `max_pieces` a walk stops after so many pieces.

    Args:
        f: The network as a function (evaluation mode), in float64: affine layers, batch norm in
            evaluation mode, padding, average and max-pooling, sums, concatenation and reshaping,
            ReLU, leaky ReLU, PReLU, ReLU6, hard tanh, hard sigmoid, clamp, abs, max, min.
        x: Where the segments start, a = 0.
        partner: x', where they end.
        max_pieces: Most pieces of a segment to find; all of them where it is None.
        rows: Vertices held at once, roughly; at most twice as many. Bounds the memory.

    Raises:
        InputError: If the inputs are not finite or not in float64, or f contains an operation that
            is not piecewise affine or not known; the message names it.
    """
    _check(x, partner, max_pieces, rows)
    walk = _Walk(f, x, partner, max_pieces, rows)
    with torch.no_grad():
        while walk.open_segments():
            walk.step()
    return walk.pieces()


def _check(x: Tensor, partner: Tensor, max_pieces: int | None, rows: int) -> None:
    if x.shape != partner.shape or not len(x):
        raise InputError(
            f"segments start at inputs of shape {tuple(x.shape)} and end at {tuple(partner.shape)}:"
            " pass one partner for each of at least one input"
        )
    if len(x) > MOST_SEGMENTS:
        raise InputError(f"{len(x)} segments at once: pass {MOST_SEGMENTS} at most")
    if x.dtype != torch.float64 or partner.dtype != torch.float64:
        raise InputError(
            "breakpoints need float64: pass x.double() and theory.network.copy_in(model, "
            "torch.float64)"
        )
    if not bool(x.isfinite().all() and partner.isfinite().all()):
        raise InputError("inputs hold infinite values or NaN: clean the data")
    if max_pieces is not None and max_pieces < 1:
        raise InputError(f"max_pieces is {max_pieces}: a segment has at least one piece")
    if rows < 4:
        raise InputError(f"rows is {rows}: at least 4 vertices must fit into memory")


class _Walk:
    """How far every segment has been walked, and the corners found on the way."""

    def __init__(
        self, f: Function, x: Tensor, partner: Tensor, max_pieces: int | None, rows: int
    ) -> None:
        self._f, self._x, self._partner, self._rows = f, x, partner, rows
        self._budget = max_pieces
        self._reached = [0] * len(x)  # in ticks
        self._found = [0] * len(x)  # pieces, at least
        self._open = list(range(len(x)))
        self._density: float | None = None  # vertices a tick
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def open_segments(self) -> int:
        """How many segments have not been walked to their end."""
        return len(self._open)

    def step(self) -> None:
        """Walks a stretch of as many segments as should fit into memory."""
        segments, right = self._next_stretch()
        left = torch.tensor([self._reached[s] for s in segments], device=self._x.device)
        ends = torch.tensor(right, device=self._x.device)
        try:
            grid, logits = self._trace(segments, left, ends)
        except TooManyVertices:
            # Shorter next time; eight ticks hold no more than one vertex beside their ends.
            width = int((ends - left).sum())
            self._density = 2 * max(self._density or 0.0, self._rows / width)
            return
        inner = len(grid.keys) - 2 * len(segments)
        self._density = (inner + 1) / int((ends - left).sum())
        grid, logits = grid.straightened(logits, _FELT)
        which = grid.segment
        found = torch.bincount(which, minlength=len(segments)).tolist()
        for s, end, corners in zip(segments, right, found, strict=True):
            self._reached[s] = end
            self._found[s] += corners - 2  # the seam may be no corner
        self._parts.append((torch.tensor(segments, device=which.device)[which],
                            grid.ticks, logits))  # fmt: skip
        self._open = [s for s in self._open if self._reached[s] < TICKS and not self._spent(s)]

    def _spent(self, s: int) -> bool:
        return self._budget is not None and self._found[s] > self._budget

    def _next_stretch(self) -> tuple[list[int], list[int]]:
        """The segments to walk on, and how far."""
        if self._density is None:
            s = self._open[0]
            return [s], [min(TICKS, self._reached[s] + _PROBE)]
        room = float(self._rows)
        segments: list[int] = []
        right: list[int] = []
        for s in self._open:
            wanted = TICKS - self._reached[s]
            if self._budget is not None:
                left = 1.1 * (self._budget - self._found[s]) + 8
                wanted = min(wanted, int(left / self._density) + 1)
            expected = 2 + self._density * wanted
            if segments and expected > room:
                break
            if expected > room:
                wanted = max(8, int((room - 2) / self._density))
            segments.append(s)
            right.append(min(TICKS, self._reached[s] + wanted))
            room -= expected
        return segments, right

    def _trace(self, segments: list[int], left: Tensor, right: Tensor) -> tuple[Grid, Tensor]:
        index = torch.tensor(segments, device=self._x.device)
        alone = len(segments) == 1
        if alone:
            # Much code drops the batch axis of a single example: a speck of it keeps it company.
            index, left, right = index.repeat(2), left.repeat(2), torch.cat([right, left + 1])
        grid = Grid.between(left, right, 2 * self._rows)
        a = (grid.ticks.double() / TICKS).reshape(-1, *(1,) * (self._x.ndim - 1))
        index = index[grid.segment]
        logits = self._f(Curves(torch.lerp(self._x[index], self._partner[index], a), grid))
        if not isinstance(logits, Curves):
            raise InputError(
                "the logits do not depend on the input through operations that can be followed: "
                "keep scripted and compiled code, numpy and constants out of the model"
            )
        if logits.rows.ndim != 2:
            raise InputError(
                "the function does not return one row of logits an example: use "
                "theory.network.evaluating"
            )
        if not bool(logits.rows.isfinite().all()):
            raise InputError("the logits are infinite or NaN: rescale the inputs or the model")
        grid, rows = logits.grid, logits.rows
        if alone:
            own = grid.segment == 0
            grid, rows = Grid(grid.keys[own], 1, grid.limit), rows[own]
        return grid, rows

    def pieces(self) -> Pieces:
        """All stretches joined, and cut to the budget."""
        segment, ticks, logits = (torch.cat(part) for part in zip(*self._parts, strict=True))
        order = segment.argsort(stable=True)
        keys = (segment * (2 * TICKS) + ticks)[order]
        kept = torch.ones_like(keys, dtype=torch.bool)
        kept[1:] = keys.diff() > 0  # seams are ends of two stretches
        grid = Grid(keys[kept], len(self._x), len(keys))
        grid, logits = grid.straightened(logits[order][kept], _FELT)
        segment, ticks = grid.segment, grid.ticks
        if self._budget is not None:
            first = torch.searchsorted(segment, segment)
            kept = torch.arange(len(segment), device=segment.device) - first <= self._budget
            segment, ticks, logits = segment[kept], ticks[kept], logits[kept]
        bounds = torch.arange(len(self._x) + 1, device=segment.device)
        return Pieces(ticks.double() / TICKS, torch.searchsorted(segment, bounds), logits)
