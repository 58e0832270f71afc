"""Figures of Theorem 1 order by order: `draw_*` puts one panel on an axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from figures.style import COLORS, legend_below, when
from theory.report import Report


def draw_orders(ax: Axes, checks: Sequence[Report]) -> None:
    """R_K of both expansions against the order, beside exact R, at the last check."""
    found = checks[-1].orders
    orders = np.arange(1, found["order"] + 1)
    forms = (("composite", COLORS[0], "o"), ("nested", COLORS[1], "s"))
    if found["affine_pieces"]:  # then the two are the same numbers
        ax.plot(orders, found["composite"], "o-", ms=4, color=COLORS[0], label="R_K, both forms")
    for name, color, marker in () if found["affine_pieces"] else forms:
        ax.plot(orders, found[name], f"{marker}-", ms=4, color=color, label=f"R_K, {name} form")
    ax.axhline(found["r"], color="0.2", lw=1.0, label="R itself")
    ax.axhline(found["tangent"], color=COLORS[2], lw=1.0, ls="--", label="tangent's share")
    if max(map(abs, found["composite"] + found["nested"])) > 10 * abs(found["r"]) > 0:
        # Linear around R, so that an expansion that explodes does not flatten all else.
        linear = 3 * abs(found["r"])
        ax.set_yscale("symlog", linthresh=linear)
        low, high = (pick(*found["composite"], *found["nested"], found["r"]) for pick in (min, max))
        ax.set_ylim(min(2 * low, -linear / 3), max(2 * high, linear / 3))
        ax.axhspan(-linear, linear, color="0.95", zorder=0, label="linear scale")
    ax.set_xticks(orders if len(orders) <= 10 else orders[::2])
    ax.set(xlabel="order K", ylabel="R_K   [nats]", title=f"Order by order, {when(checks[-1])}")
    legend_below(ax)


def has_remainders(check: Report) -> bool:
    """Whether any remainder stands clear of rounding; of one example alone, say, all are zero."""
    found = check.orders["remainders"]
    return any(
        (_clear(found, name, k) > 0).any() for name in ("of_loss", "of_f") for k in _shown(found)
    )


def _shown(found: Mapping[str, Any]) -> list[int]:
    """The orders whose remainders are drawn."""
    order = len(found["of_loss"])
    return sorted({1, (1 + order) // 2, order})


def _clear(found: Mapping[str, Any], name: str, k: int) -> np.ndarray:
    """Remainders of order k at each distance, NaN where they are lost in rounding."""
    values = np.array(found[name][k - 1])
    return np.where(values < found["rounding"], np.nan, values)


def draw_remainders(ax: Axes, checks: Sequence[Report]) -> None:
    """Remainder of the loss and of the network against the distance, at the last check."""
    found = checks[-1].orders["remainders"]
    affine = checks[-1].orders["affine_pieces"]
    shown = _shown(found)
    lines = [("of_loss", k, f"loss, K = {k}", "-", c) for k, c in zip(shown, COLORS, strict=False)]
    if affine:  # no order above the first adds anything to f's
        lines.append(("of_f", 1, "f, every K", ":", "0.3"))
    else:
        lines += [("of_f", k, f"f, K = {k}", ":", c) for k, c in zip(shown, COLORS, strict=False)]
    for rank, (name, k, label, ls, color) in enumerate(lines):
        exponent = found["exponents"][name][k - 1]
        fitted = "" if np.isnan(exponent) else f": a^{exponent:.2g}"
        ax.plot(
            found["distances"], _clear(found, name, k), color=color, ls=ls,
            lw=2.6 - 0.7 * (rank % len(shown)), label=label + fitted,
        )  # fmt: skip
    ax.axhline(found["rounding"], color="0.6", lw=0.8, ls="--", label="rounding")
    ax.set(xscale="log", yscale="log", xlabel="a   (1 is the partner)", ylabel="mean remainder")
    ax.set_title(f"What order K leaves out, {when(checks[-1])}")
    legend_below(ax)


def draw_convergence(ax: Axes, checks: Sequence[Report]) -> None:
    """Where the law of a lies inside the radius of convergence, an example a point."""
    shown = checks if len(checks) == 1 else (checks[0], checks[-1])
    for check, color in zip(shown, COLORS, strict=False):
        inside = check.orders["convergence"]["mass_inside_of_sample"]
        radius = check.orders["convergence"]["median_radius"]["root"]
        sns.ecdfplot(
            x=inside, ax=ax, color=color, label=f"{when(check)}: median radius {radius:.2g}"
        )
    if min(min(check.orders["convergence"]["mass_inside_of_sample"]) for check in shown) > 0.999:
        text = "for every example more than 99.9 %\nof a's law lies inside the radius"
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)
    ax.set(
        xlim=(-0.02, 1.02), xlabel="mass of a inside the radius", ylabel="share of the samples",
        title="Where the series converges",
    )  # fmt: skip
    legend_below(ax)
