"""Decision boundaries in the plane: P(y = 1 | x) as shading, one panel a training objective."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.style import new_figure, style

NAMES = {"erm": "ERM", "mixup": "Mixup", "mixupe": "MixupE"}


def rows(record: Mapping[str, Any]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """(the numbers of each panel, its grid of probabilities)."""
    table = pd.DataFrame(record["panels"]).drop(columns=["axis", "probability"])
    return table, [np.array(panel["probability"]) for panel in record["panels"]]


def plot(record: Mapping[str, Any]) -> Figure:
    """One panel for each objective, with the training points and the line P = 1/2."""
    table, grids = rows(record)
    x, y = np.array(record["x"]), np.array(record["y"])
    axis = np.array(record["panels"][0]["axis"])
    settings = record["settings"]
    with style():
        figure = new_figure(3.3 * len(grids) + 0.9, 4.3)
        axes = np.atleast_1d(figure.subplots(1, len(grids), sharey=True))
        for ax, (_, row), grid in zip(axes, table.iterrows(), grids, strict=True):
            shade = ax.pcolormesh(
                axis, axis, grid, cmap="RdBu_r", vmin=0, vmax=1, shading="gouraud", rasterized=True
            )
            ax.contour(axis, axis, grid, levels=[0.5], colors="black", linewidths=1.2)
            for label, marker, face in ((-1.0, "o", "#2166ac"), (1.0, "s", "#b2182b")):
                ours = y == label
                ax.scatter(
                    *x[ours].T, s=14, marker=marker, color=face, edgecolor="white", linewidth=0.5
                )
            ax.set(aspect="equal", xlabel="x₁ (standardised)")
            ax.set_title(
                f"{NAMES.get(row['label'], row['label'])}\n"
                f"held out: {100 * row['test_accuracy']:.1f}% right,\n"
                f"loss {row['test_loss']:.3f} nats"
            )
        axes[0].set_ylabel("x₂ (standardised)")
        figure.colorbar(shade, ax=list(axes), label="P(y = 1 | x)", shrink=0.8, pad=0.01)
        figure.suptitle(
            f"{settings['data']}, {len(y)} points; α = {settings['alpha']:g}, "
            f"η = {settings['eta']:g}",
            x=0.01,
            ha="left",
        )
    return figure
