"""Norm, loss, angle gap and margin gap against log t: the talk's toy figure, to any time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLORS, data_name, new_figure, style

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


def title(record: Mapping[str, Any]) -> str:
    """What was run, on what."""
    settings = record["settings"]
    where, margin = data_name(settings), f"margin γ = {record['max_margin']['margin']:.4g}"
    if record["study"] == "bias":
        return f"Gradient flow on {where}: α = {settings['alpha']:g}, {margin}"
    if settings["protocol"] == "erm":
        return f"ERM on {where}: {margin}"
    draws = "λ and partners drawn each step" if settings["sampled"] else "exact over λ and pairs"
    if not settings["sampled"] and "sgd" in settings["algorithms"]:
        draws += " but for SGD"
    return (
        f"{LABELS[settings['protocol']]} on {where}: α = {settings['alpha']:g}, {margin};\n{draws}"
    )


def plot(record: Mapping[str, Any]) -> Figure:
    """Four panels: normalised norm, training loss, angle gap, margin gap."""
    series = rows(record)
    # Directions are known to the integrator's tolerance, or to the rounding of the steps.
    known = 1e-12 if record["study"] == "bias" else 1e-15
    with style():
        figure = new_figure(9.0, 6.6)
        norm, loss, angle, margin = figure.subplots(2, 2, sharex=True).flat
        for row, color, line in zip(series, COLORS, LINES, strict=False):
            look = {"color": color, "ls": line, "lw": 1.8}
            norm.plot(row["x"], row["norm"] / row["norm"][-1], label=row["label"], **look)
            loss.plot(row["x"], row["log10_loss"], **look)
        norm.set(title="(a) Norm, relative to its last value", ylabel="‖w(t)‖ / ‖w(end)‖")
        norm.set_ylim(0, None)
        loss.set(title="(b) Training loss", ylabel="log₁₀ loss")
        angle.set(title="(c) Angle gap", ylabel="1 − cos(w, ŵ)")
        margin.set(title="(d) Margin gap", ylabel="γ − min z·w/‖w‖")
        _gap(angle, series, "angle_gap", known**2)
        _gap(margin, series, "margin_gap", known * record["max_margin"]["margin"])
        if any(row["label"] == "Adam" and row["angle_gap"][0] < 1e-6 for row in series):
            hint = "Adam's first steps have components of\none size, which here is ŵ's direction"
            margin.text(0.97, 0.05, hint, transform=margin.transAxes, ha="right", fontsize="small")
        for ax in (angle, margin):
            ax.set_xlabel("log₁₀ step" if "steps" in record["series"][0] else "log₁₀ t")
        _notes(loss, record, series)
        figure.suptitle(title(record), x=0.01, ha="left")
        handles, labels = norm.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(series))
    return figure


def _gap(ax: Axes, series: Sequence[Mapping[str, Any]], gap: str, floor: float) -> None:
    """A gap on a logarithmic axis, down to where rounding hides it."""
    seen = [np.where(row[gap] > floor, row[gap], np.nan) for row in series]
    if not any(np.isfinite(values[1:]).any() for values in seen):
        reason = "w stays on the max-margin direction:\nno gap above rounding"
        ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center")
        ax.set_yticks([])
        return
    for row, values, color, line in zip(series, seen, COLORS, LINES, strict=False):
        ax.semilogy(row["x"], values, color=color, ls=line, lw=1.8)
    last = min(row[gap][-1] for row in series)
    # What lies far below the last values is a crossing of the direction, or Adam's start on it.
    start = min(np.nanmin(np.r_[values[:2], np.inf]) for values in seen)
    ax.set_ylim(bottom=max(0.1 * min(last, start), 0.2 * floor))
    if last < 3.0 * floor:
        ax.axhline(floor, color="0.5", ls=":", lw=1)
        top = max(np.nanmax(values) for values in seen)
        ax.set_ylim(bottom=floor * (floor / top) ** 0.1)  # a tenth more, for the words
        ax.annotate(
            "below this line rounding decides",
            (0.98, floor),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize="small",
            color="0.35",
        )


def _notes(ax: Axes, record: Mapping[str, Any], series: Sequence[Mapping[str, Any]]) -> None:
    """What the figure's claim rests on, where the reader looks at the loss."""
    soft = record.get("soft_minimiser")
    if soft is None:
        return
    about = (
        f"soft labels: finite minimiser,\n‖w‖ = {soft['norm']:.4g}, loss {soft['loss']:.4g},\n"
        f"{soft['angle_degrees']:.3g}° from max margin"
    )
    ax.text(0.03, 0.05, about, transform=ax.transAxes, fontsize="small", va="bottom")
    erm, signed = (row["log10_loss"] for row in series[:2])
    if np.abs(erm - signed).max() < 0.03 * np.ptp(erm):
        hint = "ERM and signed Mixup\nlie on each other"
        ax.text(0.97, 0.6, hint, transform=ax.transAxes, fontsize="small", ha="right")
