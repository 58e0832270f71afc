"""Angle and margin gaps of a sweep over seeds and α: means with a band of one standard error."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from figures.style import style


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A series for ERM and for each α, as arrays."""
    return [
        {name: v if isinstance(v, str) else np.array(v) for name, v in series.items()}
        for series in record["series"]
    ]


def plot(record: Mapping[str, Any]) -> Figure:
    """Two panels; ERM in black, α from light to dark."""
    series = rows(record)
    colors = ["black", *sns.color_palette("flare", len(series) - 1)]
    settings = record["settings"]
    with style():
        figure = Figure(figsize=(9.0, 3.8))
        for ax, gap, title in zip(
            figure.subplots(1, 2),
            ("angle_gap", "margin_gap"),
            ("Angle gap 1 − cos(w, ŵ)", "Margin gap γ − min z·w/‖w‖"),
            strict=True,
        ):
            for row, color in zip(series, colors, strict=True):
                mean, sem = row[gap], row[f"{gap}_sem"]
                label = "ERM" if row["label"] == "erm" else row["label"].replace("alpha", "α =")
                ax.loglog(row["steps"], mean, color=color, lw=1.6, label=label)
                low = np.maximum(mean - sem, 0.05 * mean)
                ax.fill_between(row["steps"], low, mean + sem, color=color, alpha=0.2, lw=0)
            ax.set(xlabel="step", title=title)
        ax.legend(loc="best", title=record["protocol"])
        figure.suptitle(
            f"{settings['seeds']} seeds × {len(settings['alphas'])} α on {settings['data']}, "
            "λ sampled each step; bands: one standard error",
            x=0.01,
            ha="left",
        )
    return figure
