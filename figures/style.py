"""One look for all figures, set for the length of a `with` block only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes

from theory.report import Report

COLORS = sns.color_palette("colorblind")


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's ticks style with small type; figures must be made inside the block."""
    settings: Any = {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "legend.frameon": True,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.75,
        "legend.fontsize": "small",
        "savefig.dpi": 160,
    }
    with sns.axes_style("ticks"), sns.plotting_context("paper"), mpl.rc_context(settings):
        yield


def data_name(settings: Mapping[str, Any]) -> str:
    """What a figure calls a study's data: a file's name without its folder."""
    return Path(settings["data"]).name


def legend_below(ax: Axes) -> None:
    """Where it covers no data."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)


def when(check: Report) -> str:
    """The check's place in training."""
    return f"epoch {check.training['epoch']:.3g}" if check.training else "measured"
