"""The normalised margin of a two-layer homogeneous ReLU network, by ERM and by Mixup."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from figures.implicit_bias import LABELS, LINES
from figures.style import COLORS, data_name, new_figure, style


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A series for each protocol, as arrays, nulls as NaN, logarithms in decades."""
    return [
        {
            "label": LABELS.get(series["label"], series["label"]),
            "log10_t": np.array(series["log_t"], dtype=float) / np.log(10.0),
            "norm": np.array(series["norm"], dtype=float),
            "log10_loss": np.array(series["log_loss"], dtype=float) / np.log(10.0),
            "margin": np.array(series["margin"], dtype=float),
            "log10_slope": np.array(series["log_slope"], dtype=float) / np.log(10.0),
        }
        for series in record["series"]
    ]


def plot(record: Mapping[str, Any]) -> Figure:
    """Four panels: ERM's loss, Mixup's loss, norm, normalised margin."""
    settings = record["settings"]
    erm, mixup = rows(record)
    with style():
        figure = new_figure(9.0, 6.0)
        hard, soft, norm, margin = figure.subplots(2, 2).flat
        for row, color, line in zip((erm, mixup), COLORS, LINES, strict=False):
            look = {"color": color, "ls": line, "lw": 1.8, "label": row["label"]}
            norm.plot(row["log10_t"], row["norm"], **look)
            margin.plot(row["log10_t"], row["margin"], **look)
            own = hard if row is erm else soft
            values = row["log10_loss"] if row is erm else 10.0 ** row["log10_loss"]
            own.plot(row["log10_t"], values, **look)
        hard.set(title="(a) Training loss of ERM", ylabel="log₁₀ loss")
        soft.set(title="(b) Training loss of Mixup, soft labels", ylabel="loss")
        soft.text(0.97, 0.95, ending(mixup), transform=soft.transAxes, ha="right", va="top")
        norm.set(title="(c) Norm of all parameters", ylabel="‖θ‖")
        norm.legend(loc="upper left")
        margin.axhline(0.0, color="0.6", lw=0.8)
        margin.set(title="(d) Normalised margin", ylabel="min y f(x) / ‖θ‖²")
        for ax in (norm, margin):
            ax.plot(mixup["log10_t"][-1], ax.lines[1].get_ydata()[-1], "o", ms=4, color=COLORS[1])
        for ax in (hard, norm, margin):
            # Mixup's loss moves within 3 decades of t, that of ERM for a hundred.
            ax.set_xscale("log")
            ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
            ax.minorticks_off()
        for ax in (hard, soft, norm, margin):
            ax.set_xlabel("log₁₀ t")
        figure.suptitle(
            f"Two-layer ReLU network, width {settings['width']}, on {data_name(settings)} "
            f"(α = {settings['alpha']:g}); the dot is the end of Mixup's path",
            x=0.01,
            ha="left",
        )
    return figure


def ending(row: Mapping[str, Any]) -> str:
    """Why a path ends where it does."""
    slope = 10.0 ** row["log10_slope"][-1]
    why = "at a minimum" if slope < 1e-8 else "its steps are used up"
    return f"ends as {why}:\nloss {10.0 ** row['log10_loss'][-1]:.4f}, ‖∇L‖ = {slope:.1g}"
