"""Clean training and test loss through training, by objective, after the talk's loss figure.

The talk (Zou, Verma et al., "MixupE", UAI 2023) shows for a WRN-28-10 that MixupE has a higher
training loss and a lower test loss than Mixup and ERM. Here both are the plain loss on unmixed
examples in evaluation mode, so that objectives compare.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.drawing import Drawing
from figures.runs import name_of, number, read_runs
from figures.style import COLORS, new_figure, style
from figures.training import MARKERS, scale_axis
from theory.errors import InputError
from theory.record import recorded

PANELS = (
    ("train_loss", "Clean training loss", "loss   [nats]", 1),
    ("test_loss", "Test loss", "loss   [nats]", 1),
    ("test_error", "Test error", "wrong   [%]", 100),
)


def read(path: Path) -> list[dict[str, Any]]:
    """The logs of all runs in a folder or record, see `figures.runs.read_runs`.

    Returns:
        One dict an epoch: `network` (and data), `objective`, `seed` and the log's own keys.

    Raises:
        InputError: If no run has finished an epoch.
    """
    with recorded(path):
        rows = [
            {
                "network": name_of(run),
                "objective": run["label"],
                "seed": run["recipe"]["seed"],
                **line,
            }
            for run in read_runs(path)
            for line in run["log"]
        ]
    if not rows:
        raise InputError(f"{path} holds no epoch that has ended: wait, or name another")
    return rows


def draw(ax: Axes, rows: Sequence[dict[str, Any]], key: str, scale: float = 1) -> None:
    """One of the log's numbers against the epoch: means over seeds, seeds as points.

    A mean is drawn at the epochs that all of an objective's seeds have reached.
    """
    table = pd.DataFrame(
        [(row["objective"], row["seed"], row["epoch"], scale * number(row[key])) for row in rows],
        columns=["objective", "seed", "epoch", "value"],
    )
    for k, objective in enumerate(table["objective"].unique()):
        own = table[table["objective"] == objective].pivot_table("value", "epoch", "seed")
        color, marker = COLORS[k % len(COLORS)], MARKERS[k % len(MARKERS)]
        mean = own.dropna().mean(axis=1)
        ax.plot(mean.index, mean, marker, ls="-", ms=3, lw=1.2, color=color, label=objective)
        if own.shape[1] > 1:
            for seed in own:
                ax.plot(own.index, own[seed], ".", ms=2, color=color, alpha=0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Training loss, test loss and test error.

    Args:
        rows: As `read` gives them.
    """
    with style():
        figure = new_figure(7.2, 3.0)
        for ax, (key, title, label, scale) in zip(figure.subplots(1, 3), PANELS, strict=True):
            draw(ax, rows, key, scale)
            ax.set(title=title, xlabel="epoch", ylabel=label)
            if key.endswith("loss"):
                scale_axis(ax, pd.Series([number(row[key]) for row in rows]), "size")
            ax.set_xlim(left=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        seeds = {(row["objective"], row["seed"]) for row in rows}
        most = max(sum(o == name for o, _ in seeds) for name, _ in seeds)
        about = "one seed each" if most == 1 else f"means over up to {most} seeds (points)"
        figure.suptitle(f"{_networks(rows)}; {about}", x=0.01, ha="left", fontweight="bold")
    return figure


def _networks(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(row["network"] for row in rows))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def drawings(rows: Sequence[dict[str, Any]]) -> dict[str, Drawing]:
    """The figure by name."""
    caption = (
        f"Clean training loss, test loss and test error by objective: {_networks(rows)}. "
        "Unmixed examples in evaluation mode; lines are means over seeds, points are seeds."
    )
    return {"losses": Drawing(caption, lambda: plot(rows))}
