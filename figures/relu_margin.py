"""The normalised margin of a two-layer homogeneous ReLU network, by ERM and by Mixup."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from figures.implicit_bias import LABELS, LINES
from figures.style import COLORS, style


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A series for each protocol, as arrays, nulls as NaN, logarithms in decades."""
    return [
        {
            "label": LABELS.get(series["label"], series["label"]),
            "log10_t": np.array(series["log_t"], dtype=float) / np.log(10.0),
            "norm": np.array(series["norm"], dtype=float),
            "log10_loss": np.array(series["log_loss"], dtype=float) / np.log(10.0),
            "margin": np.array(series["margin"], dtype=float),
        }
        for series in record["series"]
    ]


def plot(record: Mapping[str, Any]) -> Figure:
    """Three panels: loss, norm, normalised margin."""
    settings = record["settings"]
    with style():
        figure = Figure(figsize=(10.0, 3.4))
        loss, norm, margin = figure.subplots(1, 3)
        for row, color, line in zip(rows(record), COLORS, LINES, strict=False):
            look = {"color": color, "ls": line, "lw": 1.8}
            loss.plot(row["log10_t"], row["log10_loss"], label=row["label"], **look)
            norm.plot(row["log10_t"], row["norm"], **look)
            margin.plot(row["log10_t"], row["margin"], **look)
        loss.set(title="Training loss", ylabel="log₁₀ loss")
        loss.legend(loc="lower left")
        norm.set(title="Norm of all parameters", ylabel="‖θ‖")
        margin.axhline(0.0, color="0.6", lw=0.8)
        margin.set(title="Normalised margin", ylabel="min y f(x) / ‖θ‖²")
        for ax in (loss, norm, margin):
            # The loss of Mixup settles at log₁₀ t of 2, that of ERM falls for a hundred decades.
            ax.set_xscale("log")
            ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
            ax.minorticks_off()
            ax.set_xlabel("log₁₀ t")
        figure.suptitle(
            f"Two-layer ReLU network, width {settings['width']}, on {settings['data']} "
            f"(α = {settings['alpha']:g})",
            x=0.01,
            ha="left",
        )
    return figure
