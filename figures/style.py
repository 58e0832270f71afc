"""One look for all figures, set for the length of a `with` block only; `look` picks which."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from theory.report import Report

COLORS = sns.color_palette("colorblind")
Look = Literal["screen", "paper", "talk"]


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a look.

    Attributes:
        font_scale: Times seaborn's "paper" context, whose labels have 9.6 points.
        widths: Of a single panel and of a figure of several, in inches; as drawn if None.
        tallest: A figure's height at most, in inches.
        room: Times the height that keeps the shape, for type that is larger next to the width.
    """

    font_scale: float
    widths: tuple[float, float] | None
    tallest: float
    room: float


# UAI's template has a text width of 6.75 in, in two columns of 3.25 in; a slide is 13.3 × 7.5 in.
_LOOKS: dict[Look, _Sizes] = {
    "screen": _Sizes(1.0, None, 20.0, 1.0),
    "paper": _Sizes(0.75, (3.25, 6.75), 9.0, 1.15),
    "talk": _Sizes(1.3, (7.0, 12.3), 7.2, 1.0),
}
_PANEL = 6.0  # what is drawn narrower than this, in inches, is a single panel
_look: ContextVar[Look] = ContextVar("look", default="screen")


@contextmanager
def look(name: Look) -> Iterator[None]:
    """Figures made inside the block are for a screen, a paper's columns, or slides."""
    token = _look.set(name)
    try:
        yield
    finally:
        _look.reset(token)


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's ticks style with small type; figures must be made inside the block."""
    settings: Any = {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "legend.frameon": True,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.75,
        "legend.fontsize": "small",
        "pdf.fonttype": 42,  # type that a publisher's checks accept and a reader can search
        "savefig.dpi": 160,
    }
    context = sns.plotting_context("paper", font_scale=_LOOKS[_look.get()].font_scale)
    with sns.axes_style("ticks"), context, mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches on a screen, and of the same shape in the other looks."""
    sizes = _LOOKS[_look.get()]
    if sizes.widths is None:
        return Figure(figsize=(width, height))
    wide = sizes.widths[width > _PANEL]
    return Figure(figsize=(wide, min(sizes.room * height * wide / width, sizes.tallest)))


def data_name(settings: Mapping[str, Any]) -> str:
    """What a figure calls a study's data: a file's name without its folder."""
    return Path(settings["data"]).name


def legend_below(ax: Axes) -> None:
    """Where it covers no data."""
    # The distance is in type sizes: ticks, their labels and the axis label lie between.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, ncols=2)


def when(check: Report) -> str:
    """The check's place in training."""
    return f"epoch {check.training['epoch']:.3g}" if check.training else "measured"
