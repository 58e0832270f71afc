"""What the kinks of a ReLU network contribute to Theorem 1's regulariser, exactly.

For a pair (x, x') the regulariser is E_{λ ~ D̃_λ}[φ(a) − φ(0)] with φ(a) = ℓ(f(x + a (x' − x)), y)
and a = 1 − λ (Zou, Verma et al., "MixupE", UAI 2023, Theorem 1). Between the corners of f
(`theory.segments`) φ is smooth, so Gauss quadrature converges spectrally on each piece. R splits in

    smooth part   E[ℓ(f(x) + a J v, y) − φ(0)], the linear piece at a = 0 continued to a = 1
    kink part     the rest: what no Taylor series at a = 0 can see

Quadrature: pieces are cut into panels that are short against their distance from the ends of
[0, 1], where the Beta density is singular, against the density's width, and against the change of
the logits. A panel that touches an end has the Gauss–Jacobi rule of the density's power there, all
others Gauss–Legendre times the density.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from scipy.special import betainc, betaln, roots_jacobi
from torch import Tensor

from theory.errors import InputError
from theory.losses import Head, loss
from theory.mixing import BetaMixture, relabelled_law
from theory.network import Function
from theory.segments import Pieces, segment_pieces

_NODES, _COARSE = 10, 8  # of a panel, and of the rule that its error is judged by
_CHANGE = 2.0  # most that the difference of two logits changes on a panel …
_MOST_PARTS = 4096  # … unless a panel would have to be cut into more parts


@dataclass(frozen=True)
class SegmentRegularizer:
    """Theorem 1's regulariser pair by pair, in float64.

    Attributes:
        total: E_{D̃_λ}[φ(a) − φ(0)] of each pair.
        smooth: Its smooth part.
        counts: Linear regions that the segment crosses; a lower bound where `covered` is below 1.
        covered: Probability under D̃_λ of the a on which `total` is exact; on the rest φ is sampled
            at quadrature nodes, regardless of kinks.
        error: Estimate of the quadrature error of `total`, from a second rule, panel by panel.
    """

    total: Float[Tensor, " pairs"]
    smooth: Float[Tensor, " pairs"]
    counts: Int[Tensor, " pairs"]
    covered: Float[Tensor, " pairs"]
    error: Float[Tensor, " pairs"]

    @property
    def kinks(self) -> Float[Tensor, " pairs"]:
        """The kink part, total − smooth."""
        return self.total - self.smooth


@dataclass(frozen=True)
class ExactRegularizer:
    """Theorem 1's regulariser of all pairs; means over partners, in float64.

    Attributes:
        total: R of each example, the mean over all partners, itself included.
        smooth: Its smooth part.
        error: Mean over partners of the estimated quadrature errors, none cancelling another.
        counts: Linear regions between x_i and x_j; lower bounds where `covered` is below 1.
        covered: Probability under D̃_λ of the part of each segment that was treated exactly.
    """

    total: Float[Tensor, " n"]
    smooth: Float[Tensor, " n"]
    error: Float[Tensor, " n"]
    counts: Int[Tensor, "n n"]
    covered: Float[Tensor, "n n"]

    @property
    def kinks(self) -> Float[Tensor, " n"]:
        """The kink part of each example's R."""
        return self.total - self.smooth


def exact_regularizer(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    *,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    max_pieces: int | None = None,
    rows: int = 1024,
    on_progress: Callable[[int], None] = lambda pairs: None,
) -> ExactRegularizer:
    """Theorem 1's R on all n² pairs, integrated piece by piece.

    Without a budget the polygon from x_i to x_j also serves the pair (j, i).

    Args:
        f: The network as a function (evaluation mode), in float64; see `segment_pieces`.
        x: Inputs.
        targets: y, one row an example.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is None.
        head: Which loss.
        max_pieces: Most pieces of a segment to treat exactly.
        rows: Vertices held at once, roughly; bounds the memory.
        on_progress: Called with the number of pairs just done.

    Raises:
        InputError: As for `segment_pieces`, if α or β is not positive or too large, or if there is
            no example.
    """
    law = relabelled_law(alpha, beta)
    n = len(x)
    if n == 0:
        raise InputError("there are no examples: pass at least one")
    pairs = torch.zeros(3, n, n, dtype=torch.float64, device=x.device)
    counts = torch.ones(n, n, dtype=torch.long, device=x.device)
    covered = torch.ones_like(pairs[0])

    def put(i: Tensor, j: Tensor, part: SegmentRegularizer) -> None:
        pairs[:, i, j] = torch.stack([part.total, part.smooth, part.error])
        counts[i, j], covered[i, j] = part.counts, part.covered
        on_progress(len(i))

    both_ways = max_pieces is None
    for i, j in _pairs(n, both_ways, x.device):
        pieces = segment_pieces(f, x[i], x[j], max_pieces=max_pieces, rows=rows)
        put(i, j, _regularizer(f, pieces, x[i], x[j], targets[i], law, head, rows))
        if both_ways:
            back = pieces.backwards()
            put(j, i, _regularizer(f, back, x[j], x[i], targets[j], law, head, rows))
    total, smooth, error = pairs.mean(2)
    return ExactRegularizer(total, smooth, error, counts, covered)


def _pairs(n: int, both_ways: bool, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of different examples, 64 at a time; the lower half only where it serves both ways."""
    i, j = torch.ones(n, n, device=device).triu(1).nonzero(as_tuple=True)
    if not both_ways:
        i, j = torch.cat([i, j]), torch.cat([j, i])
    for start in range(0, len(i), 64):
        yield i[start : start + 64], j[start : start + 64]


def segment_regularizer(
    f: Function,
    x: Float[Tensor, "pairs *dims"],
    targets: Float[Tensor, "pairs classes"],
    partner: Float[Tensor, "pairs *dims"],
    *,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    max_pieces: int | None = None,
    rows: int = 1024,
) -> SegmentRegularizer:
    """E_{λ ~ D̃_λ}[φ(a) − φ(0)] of each pair (x, partner), integrated piece by piece.

    Arguments and errors as for `exact_regularizer`; `targets` are those of `x`.
    """
    law = relabelled_law(alpha, beta)
    pieces = segment_pieces(f, x, partner, max_pieces=max_pieces, rows=rows)
    return _regularizer(f, pieces, x, partner, targets, law, head, rows)


def _regularizer(
    f: Function,
    pieces: Pieces,
    x: Tensor,
    partner: Tensor,
    targets: Tensor,
    law: BetaMixture,
    head: Head,
    rows: int,
) -> SegmentRegularizer:
    targets = targets.double()
    start = pieces.logits[pieces.offsets[:-1]]
    start_loss = loss(start, targets, head)

    def change(logits: Tensor, pair: Tensor) -> Tensor:
        """φ(a) − φ(0) for logits (panels, nodes, classes) of the pairs."""
        y = targets[pair][:, None].expand_as(logits)
        value = loss(logits.flatten(0, 1), y.flatten(0, 1), head)
        return value.unflatten(0, logits.shape[:2]) - start_loss[pair, None]

    def integral(panels: "_Panels") -> tuple[Tensor, Tensor]:
        def on_lines(some: Tensor, share: Tensor) -> Tensor:
            begin, end = panels.begin[some][:, None], panels.end[some][:, None]
            return change(torch.lerp(begin, end, share[:, None]), panels.pair[some])

        return _integrate(panels, law, len(x), on_lines, rows)

    total, error = integral(_panels(pieces, law, head))
    smooth, _ = integral(_panels(_first_pieces(pieces), law, head))
    if not bool(pieces.complete.all()):
        panels = _rest(pieces, law)

        def sampled(some: Tensor, share: Tensor) -> Tensor:
            pair = panels.pair[some]
            a = torch.lerp(panels.left[some, None], panels.right[some, None], share)
            a = a.reshape(*a.shape, *(1,) * (x.ndim - 1))
            points = torch.lerp(x[pair][:, None], partner[pair][:, None], a)
            with torch.no_grad():
                logits = f(points.flatten(0, 1))
            return change(logits.unflatten(0, a.shape[:2]), pair)

        for sum_, more in zip(
            (total, error), _integrate(panels, law, len(x), sampled, rows), strict=True
        ):
            sum_ += more
    covered = torch.zeros_like(total)
    for share, p, q in law.components:
        mass = betainc(q, p, pieces.covered.cpu().numpy())  # P(a ≤ covered)
        covered += share * torch.from_numpy(mass).to(covered)
    return SegmentRegularizer(total, smooth, pieces.counts, covered, error)


# Panels.


@dataclass(frozen=True)
class _Panels:
    """Intervals [left, right] of pairs, with the logits at both ends where f is affine between."""

    left: Tensor
    right: Tensor
    pair: Tensor
    begin: Tensor
    end: Tensor


def _first_pieces(pieces: Pieces) -> Pieces:
    """The first piece of each polygon, continued to a = 1."""
    first = pieces.offsets[:-1]
    begin, end = pieces.logits[first], pieces.logits[first + 1]
    end = begin + (end - begin) / pieces.breakpoints[first + 1, None]
    a = pieces.breakpoints.new_tensor([0.0, 1.0]).repeat(len(first))
    offsets = 2 * torch.arange(len(first) + 1, device=a.device)
    return Pieces(a, offsets, torch.stack([begin, end], 1).flatten(0, 1))


def _panels(pieces: Pieces, law: BetaMixture, head: Head) -> _Panels:
    """The pieces, cut for the density and for the change of the logits."""
    starts, a, logits = pieces.starts, pieces.breakpoints, pieces.logits
    left, right, piece = _cut(a[starts], a[starts + 1], law)
    at = starts[piece]
    width = a[at + 1] - a[at]

    def on_piece(points: Tensor, which: Tensor) -> Tensor:
        share = (points - a[at[which]]) / width[which]
        return torch.lerp(logits[at[which]], logits[at[which] + 1], share[:, None])

    every = torch.arange(len(left), device=left.device)
    move = on_piece(right, every) - on_piece(left, every)
    change = move.amax(1) - move.amin(1) if head == "softmax" else move.abs().amax(1)
    parts = (change / _CHANGE).ceil().long().clamp(1, _MOST_PARTS)
    which, place = _copies(parts)
    step = (right - left)[which] / parts[which]
    # Ends of [0, 1] must be met exactly.
    begin = torch.where(place == 0, left[which], left[which] + place * step)
    last = place == parts[which] - 1
    end = torch.where(last, right[which], left[which] + (place + 1) * step)
    return _Panels(
        begin, end, pieces.segment[piece[which]], on_piece(begin, which), on_piece(end, which)
    )


def _rest(pieces: Pieces, law: BetaMixture) -> _Panels:
    """What the polygons do not cover."""
    pair = (~pieces.complete).nonzero().squeeze(1)
    left = pieces.covered[pair]
    left, right, which = _cut(left, torch.ones_like(left), law)
    none = left.new_zeros(0)
    return _Panels(left, right, pair[which], none, none)


def _copies(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Each index as often as it counts, and the place of each copy among its like."""
    which = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return which, torch.arange(len(which), device=counts.device) - first[which]


def _cut(left: Tensor, right: Tensor, law: BetaMixture) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts intervals where the density asks for it: (left, right, which interval).

    Everywhere at the multiples of about twice the density's standard deviation; below the first and
    above the last of these at distances from 0 and 1 that halve, except within an interval that
    itself touches that end.
    """
    sigma = min(math.sqrt(p * q / (p + q + 1)) / (p + q) for _, p, q in law.components)
    if not sigma > 1e-4:
        raise InputError("the law of lam is too concentrated for a quadrature rule: lower alpha")
    steps = 2 * math.ceil(0.25 / sigma)  # 1/2 is a cut, so that no panel touches both ends
    even = torch.arange(1, steps, dtype=left.dtype, device=left.device) / steps
    low = torch.exp2(torch.arange(-46.0, 0.0, dtype=left.dtype, device=left.device)) / steps
    cuts = torch.cat([low, even, (1 - low).flip(0)])
    first = torch.searchsorted(cuts, left.contiguous(), right=True)
    first = torch.where(left == 0, len(low), first)
    stop = torch.searchsorted(cuts, right.contiguous())
    stop = torch.where(right == 1, len(cuts) - len(low), stop)
    inner = (stop - first).clamp(min=0)
    which, place = _copies(inner + 1)
    after = (first[which] + place).clamp(max=len(cuts) - 1)
    begin = torch.where(place == 0, left[which], cuts[(after - 1).clamp(min=0)])
    end = torch.where(place == inner[which], right[which], cuts[after])
    return begin, end, which


# Rules.


def _integrate(
    panels: _Panels,
    law: BetaMixture,
    pairs: int,
    change: Callable[[Tensor, Tensor], Tensor],
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Sums over each pair's panels of E[φ(a) − φ(0); a in the panel], and of |errors|.

    Args:
        panels: Where to integrate.
        law: The law of λ = 1 − a.
        pairs: Their number.
        change: φ − φ(0) on panels (indices), at shares of their width (nodes): (panels, nodes).
        rows: Nodes at once.
    """
    total = panels.left.new_zeros(pairs)
    error = torch.zeros_like(total)
    at_0, at_1 = panels.left == 0, panels.right == 1
    for weight, p, q in law.components:
        for some, ends in ((at_0, (q, None)), (at_1, (None, p)), (~at_0 & ~at_1, (None, None))):
            for part in some.nonzero().squeeze(1).split(max(1, rows // _NODES)):
                fine, coarse = (
                    _weighted(panels, part, change, p, q, *_rule(nodes, *ends))
                    for nodes in (_NODES, _COARSE)
                )
                total.index_add_(0, panels.pair[part], weight * fine)
                error.index_add_(0, panels.pair[part], weight * (fine - coarse).abs())
    return total, error


@cache
def _rule(
    nodes: int, at_0: float | None, at_1: float | None
) -> tuple[Tensor, Tensor, float | None, float | None]:
    """Nodes and weights on [0, 1] for the weight s^(at_0 − 1) or (1 − s)^(at_1 − 1), or none.

    High powers are left to the density: what they multiply is as good as nothing.
    """
    at_0, at_1 = (k if k is not None and k <= 20 else None for k in (at_0, at_1))
    t, w = roots_jacobi(nodes, (at_1 or 1.0) - 1, (at_0 or 1.0) - 1)
    w = w / w.sum() / (at_0 or at_1 or 1.0)
    return torch.from_numpy((1 + t) / 2), torch.from_numpy(w), at_0, at_1


def _weighted(
    panels: _Panels,
    part: Tensor,
    change: Callable[[Tensor, Tensor], Tensor],
    p: float,
    q: float,
    share: Tensor,
    weight: Tensor,
    at_0: float | None,
    at_1: float | None,
) -> Tensor:
    """The rule on these panels: ∫ (φ − φ(0)) a^(q−1) (1−a)^(p−1) da / B(p, q)."""
    share, weight = share.to(panels.left.device), weight.to(panels.left.device)
    left, width = panels.left[part, None], (panels.right - panels.left)[part, None]
    a = left + share * width
    # A power that the rule contains is taken at the panel's width instead of at the node.
    log_a = width.log().expand_as(a) if at_0 else a.log()
    log_lam = width.log().expand_as(a) if at_1 else torch.log1p(-a)
    density = torch.exp((q - 1) * log_a + (p - 1) * log_lam - betaln(p, q))
    return (weight * density * width * change(part, share)).sum(1)
