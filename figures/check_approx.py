"""Figures of `python -m theory.check_approx`: `draw_*` puts one panel on an axes.

All of them read the checks of one run in order (`theory.read_reports`), before training first.
"""

from collections.abc import Callable, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLORS, style
from theory.report import Report

Panel = Callable[[Axes, Sequence[Report]], None]


def draw_q(ax: Axes, checks: Sequence[Report]) -> None:
    """Exact q against q̂, an example a point, at the first and the last check."""
    shown = checks if len(checks) == 1 else (checks[0], checks[-1])
    for check, color, marker in zip(shown, COLORS, "os", strict=False):
        agreement = check.agreement["value"]
        ax.scatter(
            check.samples["q_hat"], check.samples["q"], s=12, alpha=0.7, color=color, marker=marker,
            label=f"{_when(check)}: error {agreement['relative_error']:.2g}, "
            f"r = {agreement['pearson']:.2f}",
        )  # fmt: skip
    ax.axline((0, 0), slope=1, color="0.4", lw=0.8, ls="--", label="q = q̂")
    ax.set(xlabel="q̂ = (y − g)ᵀf   [nats]", ylabel="exact q   [nats]", title="q against q̂")
    ax.legend(loc="best")


def draw_errors(ax: Axes, checks: Sequence[Report]) -> None:
    """The error of q̂ and its two gaps, relative to ‖q‖, through training."""
    epochs = [check.training["epoch"] for check in checks]
    names = {"q_hat": "‖q − q̂‖", "normalization": "‖normalisation gap‖",
             "homogeneity": "‖homogeneity gap‖"}  # fmt: skip
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        claims = [check.claims[name] for check in checks]
        ax.plot(epochs, [claim.value for claim in claims], "o-", ms=4, color=color, label=label)
        ax.fill_between(
            epochs, [c.low for c in claims], [c.high for c in claims], color=color, alpha=0.15, lw=0
        )
    threshold = checks[-1].claims["q_hat"].threshold
    ax.axhline(threshold, color="0.4", lw=0.8, ls="--", label=f"q̂ ≈ q holds below {threshold:g}")
    ax.set_yscale("log")
    ax.set(xlabel="epoch", ylabel="relative to ‖q‖", title="Error through training")
    ax.legend(loc="best")


def draw_correlations(ax: Axes, checks: Sequence[Report]) -> None:
    """Correlation of q̂ with q and alignment of their gradients, through training."""
    epochs = [check.training["epoch"] for check in checks]
    series = {
        "Pearson(q, q̂)": [float(check.agreement["value"]["pearson"]) for check in checks],
        "cos(∇mean|q|, ∇mean|q̂|)": [check.claims["gradient"].value for check in checks],
    }
    for (label, values), color in zip(series.items(), COLORS[3:], strict=False):
        ax.plot(epochs, values, "o-", ms=4, color=color, label=label)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="epoch", ylabel="cosine or correlation", ylim=(-1.05, 1.05))
    ax.set_title("Agreement through training")
    ax.legend(loc="best")


def draw_attribution(ax: Axes, checks: Sequence[Report], most: int = 12) -> None:
    """Layers with the largest shares in the homogeneity gap, at the last check."""
    check = checks[-1]
    table = check.attribution
    table = table.assign(share=table["mean_abs"].fillna(table["mean"].abs()))
    # Shares that are rounding, next to the losses that they were taken from, are none.
    table = table[table["share"] > 1e-6 * check.samples["q_hat"].abs().mean()]
    table = table.nlargest(most, "share")
    ax.set_title(f"Which layer breaks J x = f, {_when(check)}")
    ax.set_xlabel("mean |share| of the homogeneity gap   [nats]")
    if table.empty:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "none: the network is homogeneous", ha="center", transform=ax.transAxes)
        return
    rows = np.arange(len(table))
    for kind, color in zip(
        table["kind"].unique(), sns.color_palette("colorblind", 20), strict=False
    ):
        ours = (table["kind"] == kind).to_numpy()
        ax.barh(rows[ours], table["share"][ours], color=color, label=kind or "outside any module")
    ax.set_yticks(rows, table["layer"])
    ax.invert_yaxis()
    ax.legend(loc="lower right")


def draw_gaps(ax: Axes, checks: Sequence[Report]) -> None:
    """Each gap against the whole error q − q̂, an example a point, at the last check."""
    samples = checks[-1].samples
    error = samples["q"] - samples["q_hat"]
    for name, color, marker in (("normalization", COLORS[1], "o"), ("homogeneity", COLORS[2], "s")):
        label = "normalisation gap (data mean)" if name == "normalization" else "homogeneity gap"
        ax.scatter(error, samples[f"{name}_gap"], s=12, alpha=0.7, color=color, marker=marker,
                   label=label)  # fmt: skip
    ax.axline((0, 0), slope=1, color="0.4", lw=0.8, ls="--", label="explains all of it")
    ax.set(xlabel="q − q̂   [nats]", ylabel="gap   [nats]")
    ax.set_title(f"Which gap makes the error, {_when(checks[-1])}")
    ax.legend(loc="best")


PANELS: dict[str, Panel] = {
    "q": draw_q,
    "gaps": draw_gaps,
    "attribution": draw_attribution,
    "errors": draw_errors,
    "agreement": draw_correlations,
}
_THROUGH_TRAINING = ("errors", "agreement")


def panels_of(checks: Sequence[Report]) -> dict[str, Panel]:
    """The panels that these checks can fill; one check has no course of training to show."""
    return {
        name: panel
        for name, panel in PANELS.items()
        if len(checks) > 1 or name not in _THROUGH_TRAINING
    }


def plot_panel(name: str, checks: Sequence[Report]) -> Figure:
    """One panel as a figure of its own."""
    with style():
        figure = Figure(figsize=(5.6, 4.0))
        PANELS[name](figure.add_subplot(), checks)
    return figure


def plot_overview(checks: Sequence[Report], title: str = "") -> Figure:
    """The main panels in one figure."""
    names = [name for name in panels_of(checks) if name != "agreement"]
    shape = (2, 2) if len(names) == 4 else (1, 3)
    with style():
        figure = Figure(figsize=(4.4 * shape[1], 3.6 * shape[0]))
        for ax, name in zip(figure.subplots(*shape).flat, names, strict=True):
            PANELS[name](ax, checks)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _when(check: Report) -> str:
    return f"epoch {check.training['epoch']:g}" if check.training else "measured"
