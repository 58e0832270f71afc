"""Figures of Theorem 1 order by order: `draw_*` puts one panel on an axes."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from figures.style import COLORS, legend_below, when
from theory.report import Report


def draw_orders(ax: Axes, checks: Sequence[Report]) -> None:
    """R_K of both expansions against the order, beside exact R, at the last check."""
    found = checks[-1].orders
    orders = np.arange(1, found["order"] + 1)
    for name, color, marker in (("composite", COLORS[0], "o"), ("nested", COLORS[1], "s")):
        ax.plot(orders, found[name], f"{marker}-", ms=4, color=color, label=f"R_K, {name} form")
    ax.axhline(found["r"], color="0.2", lw=1.0, label="R itself")
    ax.axhline(found["tangent"], color=COLORS[2], lw=1.0, ls="--", label="tangent's share")
    # Linear around R, so that an expansion that explodes does not flatten all else.
    ax.set_yscale("symlog", linthresh=max(3 * abs(found["r"]), 1e-12))
    ax.set_xticks(orders if len(orders) <= 10 else orders[::2])
    ax.set(xlabel="order K", ylabel="R_K   [nats]", title=f"Order by order, {when(checks[-1])}")
    legend_below(ax)


def draw_remainders(ax: Axes, checks: Sequence[Report]) -> None:
    """Remainder of the loss and of the network against the distance, at the last check."""
    found = checks[-1].orders["remainders"]
    order = len(found["of_loss"])
    shown = sorted({1, (1 + order) // 2, order})
    for k, color in zip(shown, COLORS, strict=False):
        for name, ls, what in (("of_loss", "-", "loss"), ("of_f", ":", "f")):
            values = np.array(found[name][k - 1])
            values[values < found["rounding"]] = np.nan
            exponent = found["exponents"][name][k - 1]
            fitted = "" if exponent is None or np.isnan(exponent) else f", a^{exponent:.2g}"
            ax.plot(
                found["distances"], values, color=color, ls=ls, lw=1.2,
                label=f"{what}, K = {k}{fitted}",
            )  # fmt: skip
    ax.axhline(found["rounding"], color="0.6", lw=0.8, ls="--")
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
    ax.set(
        xlim=(-0.02, 1.02), xlabel="mass of a inside the radius", ylabel="share of the samples",
        title="Where the series converges",
    )  # fmt: skip
    legend_below(ax)
