"""Angle and margin gaps of a sweep over seeds and α: a column for each α, ERM beside it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.implicit_bias import LABELS
from figures.style import COLORS, new_figure, style


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A series for ERM and for each α, as arrays."""
    return [
        {name: v if isinstance(v, str) else np.array(v) for name, v in series.items()}
        for series in record["series"]
    ]


def _band(ax: Axes, row: Mapping[str, Any], gap: str, color: Any, label: str) -> None:
    mean, sem = row[gap], row[f"{gap}_sem"]
    ax.loglog(row["steps"], mean, color=color, lw=1.6, label=label)
    ax.fill_between(
        row["steps"], np.maximum(mean - sem, 0.05 * mean), mean + sem, color=color, alpha=0.25, lw=0
    )


def plot(record: Mapping[str, Any]) -> Figure:
    """Angle gaps above, margin gaps below; means over seeds, bands of one standard error."""
    erm, *mixed = rows(record)
    settings = record["settings"]
    gaps = (
        ("angle_gap", "angle gap\n1 − cos(w, ŵ)"),
        ("margin_gap", "margin gap\nγ − min z·w/‖w‖"),
    )
    with style():
        figure = new_figure(max(6.5, 1.6 + 2.0 * len(mixed)), 5.4)
        axes = figure.subplots(2, len(mixed), sharex=True, sharey="row", squeeze=False)
        for column, row in zip(axes.T, mixed, strict=True):
            column[0].set_title(row["label"].replace("alpha", "α ="))
            for ax, (gap, _) in zip(column, gaps, strict=True):
                _band(ax, erm, gap, "0.35", "ERM")
                _band(ax, row, gap, COLORS[0], LABELS[record["protocol"]])
            column[1].set_xlabel("step")
        for ax, (_, name) in zip(axes[:, 0], gaps, strict=True):
            ax.set_ylabel(name)
        draws = "λ sampled each step" if settings["sampled"] else "exact over λ and pairs"
        figure.suptitle(
            f"{settings['seeds']} seeds of {settings['data']} for each α, "
            f"{LABELS[settings['algorithm']]}, {draws}\nmeans with bands of one standard error",
            x=0.01,
            ha="left",
        )
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
