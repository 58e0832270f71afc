"""MixupE's gains and the methods' ranks, from a record of `python -m deep.table`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deep.run_folder import read_lines
from deep.tables.compare import BASELINES, MIXUPE, Ranks, gains, measured, ranks, selections
from deep.tables.published import published
from figures.drawing import Drawing
from figures.style import COLORS, new_figure, style
from theory.errors import InputError

RECORD = "record.jsonl"
_NAMES = {"erm": "ERM", "mixup": "Mixup"}


def read(path: Path) -> list[dict[str, Any]]:
    """The finished jobs of a record.

    Raises:
        InputError: If the file cannot be read, holds none, or is another record.
    """
    lines = read_lines(path)
    if not lines or not all(
        {"table", "row", "results", "resplit"} <= line.keys() for line in lines
    ):
        raise InputError(f"{path} is no record of deep.table with a finished job: name another")
    return lines


def draw_gains(ax: Axes, frame: pd.DataFrame, baseline: str) -> None:
    """The difference in error of MixupE and a baseline in each row, and the talk's.

    A hollow point has no interval: one repetition, or all of them differ by the same.

    Args:
        ax: Where.
        frame: As `deep.tables.compare.gains` gives it.
        baseline: Compared with.
    """
    own = frame[frame["baseline"] == baseline]
    # Of all baselines: they share the rows' axis, and a variant has one colour.
    labels = list(dict.fromkeys(frame["label"]))
    variants = list(dict.fromkeys(frame["method"]))
    step = 0.7 / len(variants)
    for k, variant in enumerate(variants):
        block = own[own["method"] == variant]
        shift = (k - (len(variants) - 1) / 2) * step
        for unknown, part in block.groupby(block["low"].isna()):
            y = [labels.index(label) + shift for label in part["label"]]
            ends = np.abs(part[["low", "high"]].to_numpy().T - part["difference"].to_numpy())
            ax.errorbar(
                part["difference"], y, xerr=None if unknown else ends, fmt="o", ms=3.5, lw=1,
                capsize=2, color=COLORS[k], mfc="none" if unknown else COLORS[k],
                label=f"{variant}, ours{', no interval' if unknown else ' [95 %]'}",
            )  # fmt: skip
    talk = own[own["method"] == MIXUPE]
    if len(talk):
        rows = [labels.index(label) for label in talk["label"]]
        ax.plot(talk["claimed"], rows, "kx", ms=5, label="mixupe, the talk")
    ax.axvline(0, color="0.5", lw=0.8, zorder=0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set(xlabel="difference in test error   [points]", title=f"MixupE − {baseline}")


def draw_ranks(ax: Axes, found: Ranks) -> None:
    """Critical-difference diagram after Demšar (JMLR 2006): bars join what is not told apart.

    Args:
        ax: Where.
        found: As `deep.tables.compare.ranks` gives it.
    """
    order = sorted(found.ranks.items(), key=lambda item: item[1])
    values = [rank for _, rank in order]
    count, left = len(order), (len(order) + 1) // 2
    ax.plot([1, count], [0, 0], "k-", lw=1)
    for place in range(1, count + 1):
        ax.plot([place, place], [0, 0.12], "k-", lw=1)
        ax.text(place, 0.18, str(place), ha="center", va="bottom", fontsize="small")
    for k, (method, rank) in enumerate(order):
        best = k < left
        depth = -0.75 - 0.4 * (k if best else count - 1 - k)
        end = 0.85 if best else count + 0.15
        ax.plot([rank, rank, end], [0, depth, depth], "k-", lw=0.8)
        text = f"{method} ({rank:.2f})"
        ax.text(end, depth, f"{text} " if best else f" {text}", va="center",
                ha="right" if best else "left")  # fmt: skip
    for level, (first, last) in enumerate(_groups(values, found.critical_difference)):
        y = -0.15 - 0.15 * level
        ax.plot([values[first] - 0.03, values[last] + 0.03], [y, y], color=COLORS[0], lw=3)
    ax.plot([1, 1 + found.critical_difference], [0.85, 0.85], "k-", lw=1.5)
    ax.text(1, 0.95, f"critical difference {found.critical_difference:.2f}", fontsize="small")
    ax.set(xlim=(-0.6, count + 1.6), ylim=(-0.95 - 0.4 * (left - 1), 1.3))
    ax.axis("off")


def _groups(ranks: Sequence[float], width: float) -> list[tuple[int, int]]:
    """First and last of each longest run of two or more rising ranks within the width."""
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(k for k, other in enumerate(ranks) if other <= rank + width)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def drawings(lines: Sequence[Mapping[str, Any]]) -> dict[str, Drawing]:
    """Figures by name: gains, and ranks where there are rows and methods enough, per selection.

    Args:
        lines: As `read` gives them.
    """
    table, found = published(lines[0]["table"]), {}
    for selection in selections(lines):
        rows = measured(lines, selection)
        frame, ranked = gains(table, rows), ranks(rows)
        suffix = f"-{selection.replace(' ', '-')}" if selection else ""
        title = table.caption.partition(":")[0] + (f", {selection}" if selection else "")
        if len(frame):
            over = " and ".join(f"over {_NAMES[baseline]}" for baseline in _baselines(frame))
            caption = (
                f"{title}: what MixupE gains {over}, in points of test error "
                "(below zero: MixupE is better), with 95 % intervals, beside what the talk claims."
            )
            found[f"gains{suffix}"] = Drawing(caption, partial(plot_gains, frame, title))
        if ranked is not None:
            caption = (
                f"{title}: mean ranks over {ranked.rows} {table.row}s; a bar joins methods that "
                "Nemenyi's test at 5 % does not tell apart."
            )
            found[f"ranks{suffix}"] = Drawing(
                caption, partial(plot_ranks, ranked, title, table.row)
            )
    return found


def _baselines(frame: pd.DataFrame) -> list[str]:
    return [baseline for baseline in BASELINES if baseline in set(frame["baseline"])]


def plot_gains(frame: pd.DataFrame, title: str) -> Figure:
    """`draw_gains` against each baseline that was run, side by side."""
    baselines = _baselines(frame)
    with style():
        figure = new_figure(7.2, 1.4 + 0.26 * frame["row"].nunique())
        axes = figure.subplots(1, len(baselines), sharey=True, squeeze=False)[0]
        entries: dict[str, Any] = {}
        for ax, baseline in zip(axes, baselines, strict=True):
            draw_gains(ax, frame, baseline)
            handles, labels = ax.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=2)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def plot_ranks(found: Ranks, title: str, row: str) -> Figure:
    """`draw_ranks` as a figure of its own."""
    with style():
        figure = new_figure(7.2, 2.3)
        draw_ranks(figure.subplots(), found)
        text = f"{title}: mean rank by test error over {found.rows} {row}s (1 is best)"
        figure.suptitle(text, x=0.01, ha="left", fontweight="bold")
    return figure
