"""Soft-label Mixup's finite minimiser: norm and angle to max margin, against α and the margin."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLORS, data_name, new_figure, style


def rows(record: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(by α, by margin), a minimiser a row."""
    return pd.DataFrame(record["by_alpha"]), pd.DataFrame(record["by_margin"])


def angles(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """Degrees to the max-margin direction: with their sign in the plane, where there is one."""
    if table["signed_angle_degrees"].notna().all():
        return table["signed_angle_degrees"].astype(float), "signed angle\nto max margin"
    return table["angle_degrees"], "angle\nto max margin"


def _draw_angles(ax: Axes, x: pd.Series, table: pd.DataFrame) -> None:
    degrees, name = angles(table)
    ax.axhline(0.0, color="0.6", lw=0.8)
    if degrees.abs().max() < 1e-9:
        degrees = 0.0 * degrees
        ax.set_ylim(-1, 1)
        ax.text(0.5, 0.6, "0° to rounding", transform=ax.transAxes, ha="center")
    ax.semilogx(x, degrees, "o-", ms=4, color=COLORS[1])
    ax.set_ylabel(f"{name}   [degrees]")


def plot(record: Mapping[str, Any]) -> Figure:
    """Norm against α and against the margin above, the angles below."""
    by_alpha, by_margin = rows(record)
    with style():
        figure = new_figure(8.4, 6.0)
        axes = figure.subplots(2, 2, sharex="col")
        for column, (table, key, label) in enumerate(
            ((by_alpha, "alpha", "α of Beta(α, α)"), (by_margin, "margin", "margin γ"))
        ):
            top, bottom = axes[:, column]
            top.semilogx(table[key], table["norm"], "o-", ms=4, color=COLORS[0])
            _draw_angles(bottom, table[key], table)
            bottom.set_xlabel(label)
            top.set_ylabel("‖w‖ at the minimiser")
        settings = record["settings"]
        axes[0, 0].set_title(f"Against α ({data_name(settings)})")
        axes[0, 1].set_title(f"Against the margin (α = {settings['margin_alpha']:g})")
        axes[0, 1].set_yscale("log")
        small = by_alpha.nsmallest(2, "alpha")
        if len(small) == 2:
            decades = np.diff(np.log(small["alpha"].to_numpy()))[0]
            slope = -np.diff(small["norm"].to_numpy())[0] / decades
            axes[0, 0].text(
                0.97,
                0.93,
                f"as α → 0: ‖w‖ grows by {slope:.3g} · log(1/α)\n"
                f"(1/γ = {1.0 / record['max_margin']['margin']:.3g})",
                transform=axes[0, 0].transAxes,
                ha="right",
                va="top",
                fontsize="small",
            )
    return figure
