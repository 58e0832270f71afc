"""Figures of a ReLU network on the segments between inputs: `draw_*` puts one panel on an axes."""

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from figures.style import COLORS
from theory.losses import Head, loss


def draw_regions(ax: Axes, counts: ArrayLike, covered: ArrayLike | None = None) -> None:
    """Histogram of the linear regions that segments cross.

    Args:
        ax: Where to draw.
        counts: Regions of each segment, any shape (leave out segments from an input to itself).
        covered: Share of each segment's mass that was treated exactly; below 1 its count is a
            lower bound and is drawn apart.
    """
    counts = np.asarray(counts).ravel()
    whole = np.ones(len(counts), bool) if covered is None else np.asarray(covered).ravel() == 1
    low, high = int(counts.min()), int(counts.max())
    wide = high > 50 * low  # a few decades: bins of equal ratio
    bins = np.unique((np.geomspace if wide else np.linspace)(low, high + 1, 31).round()).tolist()
    named = [(counts[whole], "all regions"), (counts[~whole], "at least (budget spent)")]
    shown = [(group, label) for group, label in named if len(group)]
    ax.hist([group for group, _ in shown], bins, stacked=True, color=COLORS[: len(shown)],
            label=[label for _, label in shown])  # fmt: skip
    ax.axvline(np.median(counts), color="0.2", lw=0.8, ls="--",
               label=f"median {np.median(counts):g}")  # fmt: skip
    if wide:
        ax.set_xscale("log")
    ax.set(xlabel="linear regions crossed by a segment", ylabel="segments")
    more = "" if whole.all() else " or more"
    ax.set_title(f"Linear regions between inputs, {low} to {high}{more}")
    ax.legend()


def draw_split(ax: Axes, smooth: ArrayLike, kinks: ArrayLike) -> None:
    """R of each example as its smooth part and its kink part, sorted by R.

    Args:
        ax: Where to draw.
        smooth: Smooth part of each example's R, in nats.
        kinks: Kink part.
    """
    smooth, kinks = np.asarray(smooth), np.asarray(kinks)
    order = np.argsort(smooth + kinks)
    smooth, kinks = smooth[order], kinks[order]
    rank = np.arange(len(order))
    ax.bar(rank, smooth, width=1, lw=0, color=COLORS[0], alpha=0.8, label="smooth part")
    # On top of the smooth part where both have one sign, else from zero to the other side.
    base = np.where(smooth * kinks > 0, smooth, 0.0)
    ax.bar(rank, kinks, width=1, lw=0, bottom=base, color=COLORS[1], alpha=0.8, label="kinks")
    ax.step(rank, smooth + kinks, where="mid", color="0.1", lw=1.2, label="R")
    ax.axhline(0, color="0.4", lw=0.8)
    share = np.abs(kinks).sum() / max(np.abs(kinks).sum() + np.abs(smooth).sum(), 1e-300)
    ax.set(xlabel="example, by R", ylabel="share of R   [nats]")
    ax.set_title(f"What kinks carry: {share:.0%} of |smooth| + |kinks|")
    ax.legend()


def draw_segment(
    ax: Axes, breakpoints: ArrayLike, logits: ArrayLike, target: ArrayLike, head: Head = "softmax"
) -> None:
    """φ(a) on one segment, its kinks, and what the linear piece at a = 0 would make of it.

    Args:
        ax: Where to draw.
        breakpoints: a of the corners of the network's polygon, as in `theory.segments.Pieces`.
        logits: At the corners, one row each; affine in between.
        target: y of the segment's first input.
        head: Which loss.
    """
    at, rows = np.asarray(breakpoints, float), np.asarray(logits, float)
    y = torch.as_tensor(np.asarray(target, float))

    def phi(found: np.ndarray) -> np.ndarray:
        return loss(torch.from_numpy(found), y.expand(len(found), -1), head).numpy()

    a = np.linspace(0, 1, 400)
    along = a[a <= at[-1]]
    slope = (rows[1] - rows[0]) / at[1]
    polygon = np.stack([np.interp(along, at, column) for column in rows.T], axis=1)
    ax.plot(a, phi(rows[0] + a[:, None] * slope), color=COLORS[0], ls="--",
            label="first piece continued (smooth part)")  # fmt: skip
    ax.plot(along, phi(polygon), color="0.2", lw=1.2, zorder=3,
            label="φ(a) = ℓ(f(x + a (x′ − x)), y)")  # fmt: skip
    ax.plot(at[1:-1], phi(rows[1:-1]), "o", ms=3, color=COLORS[1], label=f"kinks: {len(at) - 2}")
    ax.set(xlabel="a = 1 − λ", ylabel="loss   [nats]", title=f"One segment, {len(at) - 1} pieces")
    ax.legend()
