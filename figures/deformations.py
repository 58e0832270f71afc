"""Accuracy on deformed and attacked images, from a record of `python -m deep.robustness`.

Above, accuracy on each test set, the objectives side by side; below, where the record has curves,
accuracy against angle and zoom.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.drawing import Drawing
from figures.style import COLORS, new_figure, style
from theory.errors import InputError
from theory.record import parse_json, read_text

_CURVES = {"rotation": "angle of rotation, ±   [°]", "shear": "angle of shear, ±   [°]",
           "zoom": "zoom z   (z < 1 enlarges)"}  # fmt: skip


def _percent(group: Mapping[str, Any], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracies and half lengths of their bars, in per cent."""
    found = [group["measures"][name]["accuracy"] for name in names]
    bars = [1.96 * a["se"] if a["sd"] is None else a["sd"] for a in found]
    return 100 * np.array([a["mean"] for a in found]), 100 * np.array(bars)


def draw_accuracies(ax: Axes, record: Mapping[str, Any]) -> None:
    """Accuracy of each group of runs on each test set, and the talk's where the record has them.

    Points are means, bars one standard deviation over seeds, or for a single run the 95 % interval
    that the number of test images leaves; small dots are runs.

    Args:
        ax: Where.
        record: What `python -m deep.robustness` wrote.
    """
    groups = record["groups"]
    names = [name for name in groups[0]["measures"] if "=" not in name]
    places, step = np.arange(len(names)), 0.7 / max(len(groups), 1)
    for k, (group, color) in enumerate(zip(groups, _colors(groups), strict=True)):
        x = places + (k - (len(groups) - 1) / 2) * step
        mean, bar = _percent(group, names)
        label = f"{group['label']} ({len(group['seeds'])})"
        ax.errorbar(x, mean, bar, fmt="o", ms=4.5, capsize=2, color=color, label=label)
        own = [run["measures"] for run in record["runs"] if run["label"] == group["label"]]
        if len(own) > 1:
            for measures in own:
                y = [100 * measures[name]["accuracy"] for name in names]
                ax.plot(x + 0.25 * step, y, ".", ms=3, color=color, alpha=0.6)
    published = record["published"]
    for column, marker in zip(range(len(published["columns"])), "x+*", strict=False):
        known = [k for k, name in enumerate(names) if name in published["accuracy"]]
        y = [published["accuracy"][names[k]][column] for k in known]
        label = f"talk: {published['columns'][column]}"
        ax.plot(known, y, marker, ms=6, color="0.35", label=label)
    for edge in places[:-1] + 0.5:
        ax.axvline(edge, color="0.9", lw=0.6, zorder=0)
    ax.set_xticks(places, [name.replace(" ", "\n", 1) for name in names])
    ax.set(ylabel="test accuracy   [%]", xlim=(-0.5, len(names) - 0.5))
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def draw_curve(ax: Axes, record: Mapping[str, Any], kind: str) -> None:
    """Accuracy of each group against the amount of one kind of deformation.

    Args:
        ax: Where.
        record: What `python -m deep.robustness --curves` wrote.
        kind: "rotation", "shear" or "zoom".
    """
    groups = record["groups"]
    names = [name for name in groups[0]["measures"] if name.startswith(f"{kind}=")]
    amounts = np.array([float(name.partition("=")[2]) for name in names])
    for group, color in zip(groups, _colors(groups), strict=True):
        mean, bar = _percent(group, names)
        ax.plot(amounts, mean, "o-", ms=3, color=color)
        ax.fill_between(amounts, mean - bar, mean + bar, color=color, alpha=0.2, lw=0)
    ax.set_xlabel(_CURVES[kind])
    ax.set_ylim(bottom=0)


def plot(record: Mapping[str, Any]) -> Figure:
    """All of a record of `python -m deep.robustness`."""
    curves = any("=" in name for name in record["groups"][0]["measures"])
    with style():
        figure = new_figure(10.5, 6.6 if curves else 3.6)
        axes = figure.subplot_mosaic([["sets"] * 3, list(_CURVES)] if curves else [["sets"]])
        draw_accuracies(axes["sets"], record)
        for kind in _CURVES if curves else ():
            draw_curve(axes[kind], record, kind)
        if curves:
            first, *others = (axes[kind] for kind in _CURVES)
            first.set_ylabel("test accuracy   [%]")
            for ax in others:
                ax.sharey(first)
                ax.tick_params(labelleft=False)
        single = any(len(group["seeds"]) == 1 for group in record["groups"])
        bars = "± sd over seeds" + (", of a single run 95 % over test images" if single else "")
        figure.suptitle(
            f"Deformed and attacked test images, {record['data']} ({record['samples']} images)\n"
            f"mean {bars}; (n): runs",
            x=0.01, ha="left", fontweight="bold",
        )  # fmt: skip
    return figure


def _colors(groups: Sequence[Any]) -> list[Any]:
    return [COLORS[k % len(COLORS)] for k in range(len(groups))]


def read(path: Path) -> dict[str, Any]:
    """A record of `python -m deep.robustness`.

    Raises:
        InputError: If the file cannot be read or is no such record.
    """
    record = parse_json(read_text(path, "", "name a robustness.json"), path)
    parts = {"groups", "runs", "published", "data", "samples"}
    groups = record.get("groups") if isinstance(record, dict) and parts <= record.keys() else None
    if (
        not groups
        or not isinstance(groups, list)
        or not all(
            isinstance(group, dict) and {"label", "seeds", "measures"} <= group.keys()
            for group in groups
        )
    ):
        raise InputError(f"{path} is no record of deep.robustness: name one")
    return record


def drawings(record: Mapping[str, Any]) -> dict[str, Drawing]:
    """The figure by name."""
    caption = (
        "Test accuracy on deformed and on attacked images, by training objective: "
        f"{record['data']}, {record['samples']} images. Bars are standard deviations over seeds, "
        "of a single run 95 % intervals over the images."
    )
    return {"deformations": Drawing(caption, lambda: plot(record))}
