"""Figures of `python -m theory.check_approx`: `draw_*` puts one panel on an axes.

All of them read the checks of one run in order (`theory.read_reports`), before training first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from figures.drawing import Drawing
from figures.orders import draw_convergence, draw_orders, draw_remainders, has_remainders
from figures.segments import draw_regions, draw_segment, draw_split
from figures.style import COLORS, legend_below, new_figure, style, when
from theory.report import Report

Panel = Callable[[Axes, Sequence[Report]], None]


def draw_q(ax: Axes, checks: Sequence[Report]) -> None:
    """Exact q against q̂, an example a point, at the first and the last check."""
    shown = checks if len(checks) == 1 else (checks[0], checks[-1])
    for check, color, marker in zip(shown, COLORS, "os", strict=False):
        agreement = check.agreement["value"]
        ax.scatter(
            check.samples["q_hat"], check.samples["q"], s=12, alpha=0.7, color=color, marker=marker,
            label=f"{when(check)}: error {agreement['relative_error']:.2g}, "
            f"r = {agreement['pearson']:.2f}",
        )  # fmt: skip
    ax.axline((0, 0), slope=1, color="0.4", lw=0.8, ls="--", label="q = q̂")
    ax.set(xlabel="q̂ = (y − g)ᵀf   [nats]", ylabel="exact q   [nats]", title="q against q̂")
    legend_below(ax)


def draw_errors(ax: Axes, checks: Sequence[Report]) -> None:
    """The error of q̂ and its two gaps, relative to ‖q‖, through training."""
    epochs = [check.training["epoch"] for check in checks]
    names = {"q_hat": "‖q − q̂‖", "normalization": "‖normalisation gap‖",
             "homogeneity": "‖homogeneity gap‖"}  # fmt: skip
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        claims = [check.claims[name] for check in checks]
        # On top and dashed, as one gap is often all of the error.
        line, order = ("o--", 3) if name == "q_hat" else ("o-", 2)
        ax.plot(
            epochs, [claim.value for claim in claims], line, ms=4, color=color, label=label,
            zorder=order,
        )  # fmt: skip
        ax.fill_between(
            epochs, [c.low for c in claims], [c.high for c in claims], color=color, alpha=0.15, lw=0
        )
    threshold = checks[-1].claims["q_hat"].threshold
    ax.axhline(threshold, color="0.4", lw=0.8, ls="--", label=f"q̂ ≈ q holds below {threshold:g}")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # A homogeneous network's gap is rounding: over many decades 1, 2, 5 would cover each other.
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="epoch", ylabel="relative to ‖q‖", title="Error through training")
    legend_below(ax)


def draw_correlations(ax: Axes, checks: Sequence[Report]) -> None:
    """Correlation of q̂ with q and alignment of their gradients, through training."""
    epochs = [check.training["epoch"] for check in checks]
    pearson = [check.agreement.to_dict("index")["pearson"] for check in checks]
    ax.fill_between(
        epochs, [row["low"] for row in pearson], [row["high"] for row in pearson],
        color=COLORS[3], alpha=0.15, lw=0,
    )  # fmt: skip
    series = {
        "Pearson(q, q̂)": [row["value"] for row in pearson],
        "cos(∇mean|q|, ∇mean|q̂|)": [check.claims["gradient"].value for check in checks],
    }
    for (label, values), color in zip(series.items(), COLORS[3:], strict=False):
        ax.plot(epochs, values, "o-", ms=4, color=color, label=label)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="epoch", ylabel="cosine or correlation", ylim=(-1.05, 1.05))
    ax.set_title("Agreement through training")
    legend_below(ax)


def draw_attribution(ax: Axes, checks: Sequence[Report], most: int = 12) -> None:
    """Layers with the largest shares in the homogeneity gap, at the last check."""
    check = checks[-1]
    table = check.attribution
    table = table.assign(share=table["mean_abs"].fillna(table["mean"].abs()))
    # Shares that are rounding, next to the losses that they were taken from, are none.
    table = table[table["share"] > 1e-6 * check.samples["q_hat"].abs().mean()]
    table = table.nlargest(most, "share")
    ax.set_title(f"Which layer breaks J x = f, {when(check)}")
    unknown = table["mean_abs"].isna()
    size, mark = "mean |share|", ""
    if unknown.all() and len(table):
        size = "|mean share|"
    elif unknown.any():
        size, mark = "mean |share|, at * |mean share|,", " *"
    ax.set_xlabel(f"{size} of the homogeneity gap   [nats]")
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
    ax.set_yticks(rows, table["layer"].where(~unknown, table["layer"] + mark))
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
    ax.set_title(f"Which gap makes the error, {when(checks[-1])}")
    legend_below(ax)


def _apart(check: Report) -> np.ndarray:
    """Which segments do not lead from an example to itself."""
    pairs = check.segments["pairs"]
    return np.array(pairs["i"]) != np.array(pairs["j"])


def draw_segments(ax: Axes, checks: Sequence[Report]) -> None:
    """Linear regions that segments between samples cross, at the last check."""
    found, apart = checks[-1].segments, _apart(checks[-1])
    draw_regions(ax, np.array(found["counts"])[apart], np.array(found["covered"])[apart])


def draw_kinks(ax: Axes, checks: Sequence[Report]) -> None:
    """R of each sample split into its first piece's part and the kinks', at the last check."""
    found = checks[-1].segments
    i, total, smooth = (
        np.array(column) for column in (found["pairs"]["i"], found["total"], found["smooth"])
    )
    counts = np.bincount(i)
    draw_split(ax, np.bincount(i, smooth) / counts, np.bincount(i, total - smooth) / counts)


def draw_shown_segment(ax: Axes, checks: Sequence[Report]) -> None:
    """The loss along one segment, one that crosses as many regions as the median, last check."""
    shown = checks[-1].segments["segment"]
    head = checks[-1].settings["head"]
    draw_segment(ax, shown["breakpoints"], shown["logits"], shown["target"], head)


PANELS: dict[str, Panel] = {
    "q": draw_q,
    "gaps": draw_gaps,
    "attribution": draw_attribution,
    "errors": draw_errors,
    "agreement": draw_correlations,
    "orders": draw_orders,
    "remainders": draw_remainders,
    "convergence": draw_convergence,
    "regions": draw_segments,
    "kinks": draw_kinks,
    "segment": draw_shown_segment,
}
_CAPTIONS = {
    "q": "Exact q = (g − y)ᵀJ(E[x′] − x) against MixupE's q̂ = (y − g)ᵀf, an example a point; on "
    "the dashed line q̂ is q.",
    "gaps": "The error q − q̂ is the normalisation gap (g − y)ᵀJ E[x′] plus the homogeneity gap "
    "(g − y)ᵀ(f − J x); which of them makes it, an example a point.",
    "attribution": "Each layer's share in the homogeneity gap (g − y)ᵀ(f − J x): its mean size "
    "over the examples, or the size of its mean, |mean share|, where only that is known.",
    "errors": "Error of q̂ and its two gaps, relative to ‖q‖, through training; bands are 95 % "
    "bootstrap intervals over the examples.",
    "agreement": "Pearson's correlation of q and q̂ and the cosine of their penalties' gradients "
    "through training; the band is a 95 % bootstrap interval.",
    "orders": "Theorem 1 order by order: R_K of both expansions beside R itself, and what the "
    "network's tangent gives.",
    "remainders": "What order K leaves out of the loss and of the network, against the distance a "
    "on the way to the partner.",
    "convergence": "Share of the law of a = 1 − λ that lies inside the Taylor series' radius of "
    "convergence, over the examples; what the kinks of ReLU or max-pooling add, no series sees.",
    "regions": "Linear regions of the network that segments between examples cross.",
    "kinks": "R of each example, split into what its own linear region gives and what the kinks "
    "between regions add.",
    "segment": "The loss along one segment from an example to its partner, kink by kink, beside "
    "what the first linear piece gives; of all segments one with the median number of regions.",
}
_OVERVIEW = ("q", "gaps", "attribution", "errors")


def panels_of(checks: Sequence[Report]) -> dict[str, Panel]:
    """The panels that these checks can fill."""
    orders, segments = checks[-1].orders, checks[-1].segments
    fillable = {
        "errors": len(checks) > 1,  # one check has no course of training to show
        "agreement": len(checks) > 1,
        "orders": bool(orders),
        "remainders": bool(orders) and has_remainders(checks[-1]),
        "convergence": bool(orders and orders["convergence"]),
        "regions": bool(segments) and bool(_apart(checks[-1]).any()),  # one example has none
        "kinks": bool(segments),
        "segment": "segment" in segments,  # older records lack it
    }
    return {name: panel for name, panel in PANELS.items() if fillable.get(name, True)}


def plot_panel(name: str, checks: Sequence[Report]) -> Figure:
    """One panel as a figure of its own."""
    with style():
        figure = new_figure(5.6, 4.4)
        PANELS[name](figure.add_subplot(), checks)
    return figure


def plot_overview(checks: Sequence[Report]) -> Figure:
    """The main panels in one figure."""
    settings = checks[-1].settings
    title = ""
    if "model" in settings:  # the command's own settings; a library user has none
        title = f"{Path(settings['model']).name} on {settings['data']}"
        if len(checks) > 1:
            title += f", trained by {settings['objective']}"
    names = [name for name in panels_of(checks) if name in _OVERVIEW]
    shape = (2, 2) if len(names) == 4 else (1, 3)
    with style():
        figure = new_figure(4.6 * shape[1], 4.0 * shape[0])
        for ax, name in zip(figure.subplots(*shape).flat, names, strict=True):
            PANELS[name](ax, checks)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


NAMES = (*_CAPTIONS, "overview")  # of all figures that `drawings` may give


def drawings(checks: Sequence[Report]) -> dict[str, Drawing]:
    """Every figure that the checks can fill, by name."""
    about = _about(checks[-1])
    found = {
        name: Drawing(f"{_CAPTIONS[name]} {about}", partial(plot_panel, name, checks))
        for name in panels_of(checks)
    }
    shown = ", ".join(name for name in found if name in _OVERVIEW)
    caption = f"The check at a glance: {shown}. {about}"
    return {**found, "overview": Drawing(caption, partial(plot_overview, checks))}


def _about(check: Report) -> str:
    samples = f"{len(check.samples)} examples"
    if "model" not in check.settings:  # a library user's check
        return f"{samples}."
    network = f"{Path(check.settings['model']).name} on {check.settings['data']}, {samples}"
    epochs = check.training["epoch"] if check.training else 0
    trained = f"{epochs:g} epochs of {check.settings['objective']}" if epochs else "as it was given"
    return f"{network}, {trained}."
