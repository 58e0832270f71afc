"""The talk's tables beside ours: what was run stands there, what was not is grey, with its command.

Errors, or for the table of deformations accuracies, in per cent: means and standard deviations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deep.deformations import PUBLISHED, PUBLISHED_COLUMNS
from deep.run_folder import labels
from deep.tables.compare import Measured, cells, measured, selections
from deep.tables.published import METHODS, published
from figures import deformations, tables
from figures.drawing import Drawing
from figures.runs import read_runs
from figures.style import new_figure, style

_NUMBERED = (4, 5, 6)
_GREY = "0.85"
_HEADS = {"erm": "ERM", "mixup": "Mixup", "manifold_mixup": "Manifold\nMixup",
          "mixupe-paper": "MixupE"}  # fmt: skip
_NOT_OF_MIXUP = {"eta", "tau", "clean_statistics"}
# Settings that every run records and that have no bearing on these objectives.
_UNUSED = {"erm": {"alpha", "beta", "lam", *_NOT_OF_MIXUP}, "mixup": _NOT_OF_MIXUP}


@dataclass(frozen=True)
class Comparison:
    """A table as published and as measured.

    Attributes:
        title: What it is.
        methods: Columns, once for the talk and once for ours.
        rows: Label, the talk's texts, our texts; None where nothing was run.
        command: What would fill the grey cells.
        records: What it was read from.
    """

    title: str
    methods: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], Sequence[str | None]]]
    command: str
    records: Sequence[Path] = ()


def comparisons(root: Path) -> dict[str, Comparison]:
    """Every table of the talk by name, with what records below `root` hold of it.

    Args:
        root: Such a folder as results/: campaign/*/runs.jsonl, campaign/*/robustness.json and
            tables/N/record.jsonl are read.
    """
    found = {"tables/images": _images(root), "tables/deformations": _deformations(root)}
    for number in _NUMBERED:
        path = root / "tables" / str(number) / tables.RECORD
        lines = tables.read(path) if path.exists() else []
        for selection in selections(lines):
            suffix = f"-{selection.replace(' ', '-')}" if selection else ""
            title = published(number).caption + (f" Ours: {selection}." if selection else "")
            rows = _rows(number, measured(lines, selection))
            found[f"tables/{number}/table{suffix}"] = Comparison(
                title, list(METHODS.values()), rows, f"python -m deep.table {number}",
                [path] if lines else [],
            )  # fmt: skip
    return found


def drawings(root: Path) -> dict[str, tuple[Drawing, Sequence[Path]]]:
    """Figures by name, each with the records that it is drawn from, see `comparisons`."""
    return {
        name: (Drawing(_caption(table), partial(plot, table)), table.records)
        for name, table in comparisons(root).items()
    }


def _caption(table: Comparison) -> str:
    missing = any(text is None for _, _, ours in table.rows for text in ours)
    grey = f" Grey: not run; {table.command} would." if missing else ""
    return f"{table.title} As published and as measured here, mean ± standard deviation in %.{grey}"


def _images(root: Path) -> Comparison:
    """Runs of the published networks at their full width, whatever their number of epochs.

    A row shows runs of one campaign that differ in objective and seed alone: of several such sets
    the one with most epochs, then with most runs, then the first. The title names each row's.
    """
    table = published("images")
    sets: dict[str, list[tuple[Path, list[dict[str, Any]]]]] = {}
    for path in sorted(root.glob("campaign/*/runs.jsonl")):
        finished = [run for run in read_runs(path) if run["result"]]
        for name in table.rows:
            runs = [run for run in finished if _stands_for(run["recipe"], name)]
            for one in runs:
                alike = [run for run in runs if _alike(run, one["recipe"])]
                sets.setdefault(name, []).append((path, alike))
    rows: dict[str, Measured] = {}
    records, sources = [], []
    for name, found in sets.items():
        path, runs = max(found, key=lambda s: (s[1][0]["recipe"]["epochs"], len(s[1])))
        errors = rows.setdefault(name, Measured({}, 0.0)).errors
        for run in runs:
            error = 100 * run["result"]["last"]["test_error"]
            errors.setdefault(run["recipe"]["objective"], {})[run["recipe"]["seed"]] = error
        records += [path] if path not in records else []
        epochs = runs[0]["recipe"]["epochs"]
        sources.append(f"{table.rows[name].label}: {path.parent.name}, {epochs:g} epochs")
    command = "python -m deep.campaign --recipe preact50-cifar10 (on a GPU)"
    title = table.caption + (f" Ours: {'; '.join(sources)}." if sources else "")
    return Comparison(title, list(METHODS.values()), _rows("images", rows), command, records)


def _stands_for(recipe: Mapping[str, Any], name: str) -> bool:
    """Whether a run belongs in the row of that name."""
    known = recipe["objective"] in METHODS.values() and not recipe["width"]
    return known and f"{recipe['model']}-{recipe['data']}" == name


def _alike(run: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether a run has this recipe's settings, as far as its own objective uses them."""
    unused = {"objective", *_UNUSED.get(run["recipe"]["objective"], ())}
    pair = [
        {"objective": "", **{k: v for k, v in each.items() if k not in unused}}
        for each in (run["recipe"], recipe)
    ]
    return len(set(labels(pair))) == 1


def _deformations(root: Path) -> Comparison:
    """Records of deep.robustness on the talk's data set."""
    methods, records = ("mixup", "manifold_mixup", "mixupe-paper"), []
    accuracy: dict[tuple[str, str], str] = {}
    for path in sorted(root.glob("campaign/*/robustness.json")):
        record = deformations.read(path)
        if not record["published"]["columns"]:  # another data set than the talk's
            continue
        records.append(path)
        for group in record["groups"]:
            for name, measure in group["measures"].items():
                found = measure["accuracy"]
                sd = None if found["sd"] is None else 100 * found["sd"]
                accuracy[name, group["label"]] = _spread(100 * found["mean"], sd)
    rows = [
        (
            name,
            [f"{value:.2f}" for value in talk],
            [accuracy.get((name, method)) for method in methods],
        )
        for name, talk in PUBLISHED.items()
    ]
    title = f"Test accuracy on deformed images of CIFAR-100 ({', '.join(PUBLISHED_COLUMNS)})."
    command = "python -m deep.robustness on networks trained on cifar100"
    return Comparison(title, methods, rows, command, records)


def _rows(
    number: int | str, found: Mapping[str, Measured]
) -> list[tuple[str, list[str], list[str | None]]]:
    frame = cells(published(number), found).set_index(["label", "method"])
    rows = []
    for label in dict.fromkeys(frame.index.get_level_values("label")):
        own = frame.loc[label].reindex(list(METHODS.values()))
        talk = [_spread(*pair) for pair in zip(own["published"], own["published_sd"], strict=True)]
        ours = [
            None if np.isnan(mean) else _spread(mean, sd)
            for mean, sd in zip(own["ours"], own["sd"], strict=True)
        ]
        rows.append((str(label), talk, ours))
    return rows


def _spread(mean: float, sd: float | None) -> str:
    return f"{mean:.2f}" if sd is None or np.isnan(sd) else f"{mean:.2f} ± {sd:.2f}"


def plot(table: Comparison) -> Figure:
    """The table as a figure: the talk's columns, then ours, grey where nothing was run."""
    count, rows = len(table.methods), len(table.rows)
    label: float = 2  # width of the column of labels, in columns
    with style():
        figure = new_figure(7.2, 0.24 * (rows + 3))
        ax = figure.subplots()
        ax.set(xlim=(0, label + 2 * count), ylim=(rows, -2.4))
        ax.axis("off")
        for start, who in ((label, "the talk"), (label + count, "ours")):
            ax.text(start + count / 2, -1.9, who, ha="center", va="center", fontweight="bold")
            ax.plot([start + 0.1, start + count - 0.1], [-1.5, -1.5], color="0.2", lw=0.8)
            for k, method in enumerate(table.methods):
                _write(ax, start + k, -0.75, _HEADS[method])
        for y, (name, talk, ours) in enumerate(table.rows):
            ax.text(0, y + 0.5, name, va="center", fontsize="small")
            for k, text in enumerate([*talk, *ours]):
                if text is None:
                    ax.add_patch(Rectangle((label + k, y), 1, 1, color=_GREY, lw=0))
                else:
                    _write(ax, label + k, y + 0.5, text)
        for edge, width in ((-2.4, 1.2), (0, 0.8), (rows, 1.2)):
            ax.axhline(edge, color="0", lw=width, clip_on=False)
    return figure


def _write(ax: Axes, column: float, y: float, text: str) -> None:
    ax.text(column + 0.5, y, text, ha="center", va="center", fontsize="small", linespacing=0.9)
