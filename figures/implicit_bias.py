"""Norm, loss, angle gap and margin gap against log t: the talk's toy figure, to any time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLORS, style

LABELS = {
    "erm": "ERM",
    "mixup-signed": "Mixup, labels absorbed (signed)",
    "mixup-soft": "Mixup, soft labels",
    "gd": "gradient descent",
    "sgd": "SGD",
    "momentum": "momentum",
    "adam": "Adam",
}
LINES = ("-", "--", "-.", ":")


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The series of a `bias` or `descent` record as arrays, nulls as NaN.

    `x` is log₁₀ of the step count where there are steps, else of the time.
    """
    return [
        {
            "label": LABELS.get(series["label"], series["label"]),
            "x": np.log10(series["steps"])
            if "steps" in series
            else np.array(series["log_t"], dtype=float) / np.log(10.0),
            "norm": np.array(series["norm"], dtype=float),
            "log10_loss": np.array(series["log_loss"], dtype=float) / np.log(10.0),
            "angle_gap": np.array(series["angle_gap"], dtype=float),
            "margin_gap": np.array(series["margin_gap"], dtype=float),
        }
        for series in record["series"]
    ]


def plot(record: Mapping[str, Any]) -> Figure:
    """Four panels: normalised norm, training loss, angle gap, margin gap."""
    series = rows(record)
    with style():
        figure = Figure(figsize=(9.0, 6.4))
        norm, loss, angle, margin = figure.subplots(2, 2, sharex=True).flat
        for row, color, line in zip(series, COLORS, LINES, strict=False):
            look = {"color": color, "ls": line, "lw": 1.8}
            norm.plot(row["x"], row["norm"] / row["norm"][-1], label=row["label"], **look)
            loss.plot(row["x"], row["log10_loss"], **look)
            angle.semilogy(row["x"], np.maximum(row["angle_gap"], 1e-17), **look)
            margin.semilogy(row["x"], np.maximum(row["margin_gap"], 1e-17), **look)
        norm.set(title="(a) Norm, relative to its last value", ylabel="‖w(t)‖ / ‖w(end)‖")
        norm.set_ylim(0, 1.08)
        norm.legend(loc="lower right")
        loss.set(title="(b) Training loss", ylabel="log₁₀ loss")
        angle.set(title="(c) Angle gap", ylabel="1 − cos(w, ŵ)")
        margin.set(title="(d) Margin gap", ylabel="γ − min z·w/‖w‖")
        for ax in (angle, margin):
            ax.set_xlabel("log₁₀ step" if "steps" in record["series"][0] else "log₁₀ t")
        for ax, gap in ((angle, "angle_gap"), (margin, "margin_gap")):
            # What lies far below the last values is a start on, or a crossing of, the direction.
            last = min(row[gap][-1] for row in series)
            ax.set_ylim(bottom=max(0.1 * last, 1e-17))
        _note(loss, record)
        settings = record["settings"]
        figure.suptitle(
            f"Implicit bias on {settings['data']}: α = {settings['alpha']:g}, "
            f"margin γ = {record['max_margin']['margin']:.4g}",
            x=0.01,
            ha="left",
        )
    return figure


def _note(ax: Axes, record: Mapping[str, Any]) -> None:
    """What the figure's claim rests on, where the reader looks at the loss."""
    soft = record.get("soft_minimiser")
    if soft is None:
        return
    ax.text(
        0.03,
        0.06,
        f"soft labels: finite minimiser,\n‖w‖ = {soft['norm']:.4g}, loss {soft['loss']:.4g},\n"
        f"{soft['angle_degrees']:.2g}° from max margin",
        transform=ax.transAxes,
        fontsize="small",
        va="bottom",
    )
