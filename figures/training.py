"""Does q̂ ≈ q hold while the network trains? The checks of one or several runs, against the epoch.

`read` gathers what `python -m deep.train` measured with `theory.probe.measure_probe`; `plot`
compares objectives, `plot_layers` shows which layers break J x = f in one run.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from figures.drawing import Drawing
from figures.runs import name_of, number, read_runs
from figures.style import COLORS, new_figure, style
from theory.errors import InputError
from theory.record import recorded

Row = dict[str, Any]

MARKERS = "osD^vP*X<>"


def _estimate(name: str) -> Callable[[Row], float]:
    return lambda row: number(row[name]["value"])


def _mean_abs_q(row: Row) -> float:
    return number(row["mean_abs_q"])


def _gradient_cosine(row: Row) -> float:
    return number(row["alignment"] and row["alignment"]["cosine_abs_q"])


# Title, axis label, value of a row, and what the axis is: a size, or something in [−1, 1].
PANELS: tuple[tuple[str, str, Callable[[Row], float], str], ...] = (
    ("Error of q̂", "‖q − q̂‖ / ‖q‖", _estimate("relative_error"), "size"),
    ("Normalisation gap", "relative to ‖q‖", _estimate("normalization"), "size"),
    ("Homogeneity gap", "relative to ‖q‖", _estimate("homogeneity"), "size"),
    ("Correlation of q and q̂", "Pearson's r", _estimate("pearson"), "cosine"),
    ("cos(∇mean|q|, ∇mean|q̂|)", "cosine", _gradient_cosine, "cosine"),
    ("What is approximated", "mean |q|   [nats]", _mean_abs_q, "size"),
)


def read(path: Path) -> list[Row]:
    """The checks of all runs in a folder or record, see `figures.runs.read_runs`.

    Args:
        path: A run's folder, a folder of runs, a campaign's folder or its record.

    Returns:
        One dict a check, in the runs' and the epochs' order: `network` (and data), `objective`,
        `seed`, `epoch`, `step`, `lr` and what `theory.probe.measure_probe` returns.

    Raises:
        InputError: If there are no checks, or they would be averaged over what does not belong
            together: several networks or data sets, or two runs of one objective and seed.
    """
    runs = read_runs(path)
    with recorded(path):
        rows = [
            {
                "network": name_of(run),
                "objective": run["label"],
                "seed": run["recipe"]["seed"],
                **check,
            }
            for run in runs
            for check in run["checks"]
        ]
    if not rows:
        raise InputError(f"{path} holds no checks: train with --check-every 1")
    networks = sorted({row["network"] for row in rows})
    if len(networks) > 1:
        raise InputError(f"{path} holds runs of {' and of '.join(networks)}: draw one at a time")
    trained = [(run["label"], run["recipe"]["seed"]) for run in runs if run["checks"]]
    for objective, seed in trained:
        if trained.count((objective, seed)) > 1:
            raise InputError(
                f"{path} holds two runs of {objective} with seed {seed}: draw one at a time"
            )
    return rows


def plot(rows: Sequence[Row]) -> Figure:
    """Error, gaps, correlation and alignment of gradients through training, a line an objective.

    Lines are means over the seeds, at the epochs that all of an objective's seeds have reached;
    points are the seeds. Below each column is the learning rate.

    Args:
        rows: As `read` gives them.
    """
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    table = pd.DataFrame(
        [
            [row["objective"], row["seed"], row["epoch"], *(value(row) for *_, value, _ in PANELS)]
            for row in rows
        ],
        columns=["objective", "seed", "epoch", *range(len(PANELS))],
    )
    with style():
        figure = new_figure(7.2, 5.8)
        axes = figure.subplots(3, 3, sharex=True, height_ratios=(3, 3, 1))
        for k, (ax, (title, label, _, kind)) in enumerate(zip(axes[:2].flat, PANELS, strict=True)):
            _panel(ax, table, objectives, k)
            ax.set(title=title, ylabel=label)
            scale_axis(ax, table[k], kind)
        axes[0, 0].axhline(1, color="0.3", lw=0.9, ls="--", label="no better than zero")
        for ax in axes[2]:
            _draw_learning_rate(ax, rows)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        seeds = table.groupby("objective")["seed"].nunique()
        count = "–".join(str(n) for n in sorted({seeds.min(), seeds.max()}))
        about = "one seed each" if count == "1" else f"means over {count} seeds (points)"
        _title(figure, f"{rows[0]['network']}; {rows[0]['samples']} examples checked; {about}")
    return figure


def drawings(rows: Sequence[Row]) -> dict[str, Drawing]:
    """Figures by name: training, and layers if the rows are of a single run."""
    about = f"{rows[0]['network']}, {rows[0]['samples']} examples that are probed as it trains."
    caption = (
        "Does q̂ ≈ q hold while the network trains? Error of q̂, its two gaps, correlation with q "
        f"and cosine of the penalties' gradients, by objective: {about}"
    )
    found = {"training": Drawing(caption, lambda: plot(rows))}
    if len(_runs(rows)) == 1:
        caption = (
            f"Layers' shares in the homogeneity gap (g − y)ᵀ(f − J x) through training: {about}"
        )
        found["layers"] = Drawing(caption, lambda: plot_layers(rows))
    return found


def plot_layers(rows: Sequence[Row], most: int = 6) -> Figure:
    """Which layers make the homogeneity gap (g − y)ᵀ(f − J x) of one run, through training.

    Left: the mean of each layer's share, with its sign; they add up to the mean gap. Right: the
    mean of the shares' sizes, which do not cancel. The layers named are those whose shares are
    largest, averaged over the checks.

    Args:
        rows: As `read` gives them, of one run.
        most: How many layers have a line of their own.

    Raises:
        InputError: If the rows are of several runs.
    """
    runs = _runs(rows)
    if len(runs) > 1:
        names = ", ".join(f"{objective} with seed {seed}" for objective, seed in runs)
        raise InputError(f"shares by layer are drawn for one run, and these are {names}: pick one")
    epochs = [row["epoch"] for row in rows]
    signed, sizes = (_shares(rows, name) for name in ("mean", "mean_abs"))
    # With batch statistics only totals are known.
    largest = (signed.abs() if sizes.isna().all(axis=None) else sizes).mean()
    # What no layer accounts for is rounding, unless the network hides something from hooks.
    largest = largest[largest > 1e-3 * largest.max()]
    kinds = {part["layer"]: part["kind"] for row in rows for part in row["attribution"]}
    named = list(largest.nlargest(most).index)
    with style():
        figure = new_figure(7.2, 4.4)
        axes = figure.subplots(2, 2, sharex=True, height_ratios=(5, 1))
        left, right = axes[0]
        for layer, color, marker in zip(named, COLORS, MARKERS, strict=False):
            label = f"{layer} {kinds[layer]}" if layer.isdigit() else layer  # of nn.Sequential
            left.plot(epochs, signed[layer], f"{marker}-", ms=3.5, lw=1.2, color=color, label=label)
            right.plot(epochs, sizes[layer], f"{marker}-", ms=3.5, lw=1.2, color=color)
        rest = signed.drop(columns=named)
        if rest.shape[1]:
            label = f"{rest.shape[1]} others together"
            left.plot(epochs, rest.sum(axis=1), color="0.55", lw=1.2, ls=":", label=label)
        whole = signed.to_numpy().sum(axis=1)
        left.plot(epochs, whole, color="0", lw=1.8, label="whole gap")
        left.axhline(0, color="0.4", lw=0.8)
        usual = float(np.median(np.abs(whole)))
        if np.abs(whole).max() > 10 * usual > 0:
            # Linear around what is usual, so that one epoch does not flatten all others.
            _linear_below(left, usual)
        left.set(title="Mean share, with its sign", ylabel="nats")
        right.set(title="Mean size of the share", ylabel="nats")
        if sizes.isna().all(axis=None):
            _say(right, "not known with\nbatch statistics")
        else:
            scale_axis(right, pd.Series(sizes[named].to_numpy().ravel()), "size")
        for ax in axes[1]:
            _draw_learning_rate(ax, rows)
        figure.legend(loc="outside lower center", ncols=3)
        objective, seed = runs[0]
        network = rows[0]["network"]
        _title(figure, f"Which layer breaks J x = f: {network}; {objective}, seed {seed}")
    return figure


def _runs(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Objective and seed of each run, in order."""
    return list(dict.fromkeys((row["objective"], row["seed"]) for row in rows))


def _panel(ax: Axes, table: pd.DataFrame, objectives: Sequence[str], column: int) -> None:
    """Means and points of one quantity."""
    for k, objective in enumerate(objectives):
        color, marker = COLORS[k % len(COLORS)], MARKERS[k % len(MARKERS)]
        ours = table[table["objective"] == objective]
        by_epoch = ours.groupby("epoch")
        seeds = ours["seed"].nunique()
        # Where a seed is missing, a mean over the others would jump.
        complete = by_epoch["seed"].nunique() == seeds
        means = by_epoch[column].mean(skipna=False)[complete]
        ax.plot(
            means.index, means, color=color, lw=1.3, ls="-" if k < 5 else "--", marker=marker,
            ms=3.5, markevery=max(1, len(means) // 8), label=objective,
        )  # fmt: skip
        if seeds > 1:
            ax.plot(
                ours["epoch"], ours[column], marker, ms=2.5, color=color, alpha=0.55, mew=0,
                label=f"_seeds of {objective}",
            )  # fmt: skip
    if table[column].isna().all():
        _say(ax, "not measured")


def scale_axis(ax: Axes, values: pd.Series, kind: str) -> None:
    """The value axis for a "size", logarithmic where it can be, or for a "cosine"."""
    if kind == "cosine":
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set_ylim(-1.05, 1.05)
        return
    found = values[np.isfinite(values)]
    if (found > 0).all() and len(found):
        ax.set_yscale("log")
        # A decade or two hold too few powers of ten to read by.
        span = found.max() / found.min()
        near = (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
        few = near if span < 2 else (1, 1.5, 2, 3, 5, 7)
        subs = few if span < 8 else (1, 2, 5) if span < 100 else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs))
        if found.min() > 1e-4 and found.max() < 1e5:
            ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif (found > 0).any():  # a gap that is exactly zero has its place too
        _linear_below(ax, float(found[found > 0].min()))
        ax.set_ylim(bottom=0)


def _linear_below(ax: Axes, size: float) -> None:
    """A log axis on both sides of a linear one, which ends at the power of ten below size."""
    ax.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(size)), linscale=1)
    ax.yaxis.set_major_formatter("{x:g}")


def _draw_learning_rate(ax: Axes, rows: Sequence[Row]) -> None:
    """The learning rate at the checks, down to a thousandth of the largest."""
    rates = pd.DataFrame([(row["epoch"], number(row["lr"])) for row in rows]).drop_duplicates()
    for _, same in rates.groupby(rates.groupby(0).cumcount()):  # several, if schedules differ
        ax.plot(same[0], same[1], ".-", ms=3, color="0.3", lw=1.0)
    top = rates[1].max()
    if top > 0:
        ax.set_yscale("log")
        ax.set_ylim(max(0.7 * rates[1][rates[1] > 0].min(), 1e-3 * top), 1.5 * top)
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=rates[0].max() >= 2))
    ax.set(xlabel="epoch", ylabel="rate")


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold")


def _say(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)


def _shares(rows: Sequence[Row], name: str) -> pd.DataFrame:
    """One row a check, one column a layer; a layer that one check lacks has no share there."""
    return pd.DataFrame(
        [{part["layer"]: number(part[name]) for part in row["attribution"]} for row in rows]
    )
