"""A table as published beside ours, as Markdown, LaTeX and CSV: `deep.tables.compare` in words."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from deep.tables.compare import (
    BASELINES,
    MIXUPE,
    Ranks,
    cells,
    gains,
    measured,
    ranks,
    selections,
)
from deep.tables.published import METHODS, published


def rendered(number: int, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The files that a record comes to: name -> content.

    Args:
        number: Of the talk's table.
        lines: Of the record, see `deep.table`.
    """
    table = published(number)
    text, tex = [f"# {table.caption}"], []
    cell_frames, gain_frames = [], []
    for selection in selections(lines):
        rows = measured(lines, selection)
        cell_frame, gain_frame, found = cells(table, rows), gains(table, rows), ranks(rows)
        heading = f", {selection}" if selection else ""
        grids = [(f"Test error [%]{heading}", cell_grid(cell_frame, table.row))]
        if len(gain_frame):
            grids.append((f"What MixupE gains [points]{heading}", gain_grid(gain_frame, table.row)))
        if found is not None:
            grids.append((f"Over {found.rows} {table.row}s{heading}", rank_grid(found)))
        text.append(f"## At a glance{heading}\n\n{overview(number, lines, selection)}")
        text += [f"## {title}\n\n{markdown(grid)}" for title, grid in grids]
        tex += [f"% {title}\n{latex(grid)}" for title, grid in grids]
        cell_frames.append(cell_frame.assign(selection=selection))
        gain_frames.append(gain_frame.assign(selection=selection))
    text.append("\n".join(f"- {note}" for note in _notes(number, lines)))
    return {
        "table.md": "\n\n".join(text) + "\n",
        "table.tex": "\n\n".join(tex) + "\n",
        "cells.csv": pd.concat(cell_frames).to_csv(index=False),
        "gains.csv": pd.concat(gain_frames).to_csv(index=False),
    }


def overview(number: int, lines: Sequence[Mapping[str, Any]], selection: str | None) -> str:
    """What was run, a Markdown row a row of the table: errors, and what became of the gains.

    Args:
        number: Of the talk's table.
        lines: Of the record.
        selection: One of `deep.tables.compare.selections`.
    """
    table, rows = published(number), measured(lines, selection)
    ours = {
        (line["row"], line["method"]): _spread(line["ours"], None)
        for line in _lines(cells(table, rows))
    }
    found = {
        (line["row"], line["baseline"]): line
        for line in _lines(gains(table, rows))
        if line["method"] == MIXUPE
    }
    methods = list(METHODS.values())
    head = [table.row, "talk: ERM / Mixup / MixupE", "ours", *(
        text for name in BASELINES for text in (f"MixupE − {name} [95 %]", "gain claimed")
    )]  # fmt: skip
    grid = [head]
    for name in (name for name in table.rows if name in rows):
        talk = " / ".join(f"{table.rows[name].errors[method][0]:.2f}" for method in methods)
        texts = [table.rows[name].label, talk, " / ".join(ours[name, m] for m in methods)]
        for baseline in BASELINES:
            line = found.get((name, baseline))
            texts += ["–", "–"] if line is None else [_starred(line), line["verdict"]]
        grid.append(texts)
    return markdown(grid)


def _notes(number: int, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    table = published(number)
    resplit = any(line["resplit"] for line in lines)
    missing = [name for name in table.rows if name not in {line["row"] for line in lines}]
    notes = [
        _protocol(lines),
        f"talk: mean ± spread of {table.trials} trials ({table.unit}). ours: mean ± standard "
        "deviation over repetitions; ours − talk with Welch's 95 % interval, though protocols "
        "differ where the talk does not state its own.",
        "gains: paired over repetitions, negative where MixupE is better, "
        + (
            "with the corrected resampled t interval of Nadeau & Bengio (2003), since splits share "
            "examples"
            if resplit
            else "with the paired t interval: all repetitions share one split, so it covers the "
            "randomness of training and not that of the data"
        )
        + "; * p < 0.05 after Holm's correction over the rows of a comparison.",
        "the gain claimed is, by each row's own interval without correction: reproduced if it lies "
        "below zero (smaller, if also above the claimed gain), not reproduced if it excludes the "
        "claimed gain and not zero or worse, undecided if it holds both.",
    ]
    if missing:
        command = _with_rows(lines[-1]["command"], missing)
        elsewhere = ", without --data-dir what is to be downloaded" * ("--data-dir" in command)
        notes.append(f"not run: {', '.join(missing)}; to run: `{command}`{elsewhere}")
    return notes


def _protocol(lines: Sequence[Mapping[str, Any]]) -> str:
    """What all jobs of a record share of their settings, and which settings differ."""
    every = [line["settings"] for line in lines]
    names = list(dict.fromkeys(name for settings in every for name in settings))
    shared = [n for n in names if all(s.get(n) == every[0].get(n) is not None for s in every)]
    differing = [n for n in names if n not in shared and any(s.get(n) is not None for s in every)]
    text = "; ".join(f"{name}: {_listed(every[0][name])}" for name in shared)
    apart = f"; by the job, in the record: {', '.join(differing)}" if differing else ""
    return f"ours, in every job: {text}{apart}."


def _listed(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return str(value)
    texts = [str(item) for item in value]
    return ", ".join(texts if len(texts) < 10 else [*texts[:2], "…", texts[-1]])


def _with_rows(command: str, rows: Sequence[str]) -> str:
    """The command for other rows of the same record."""
    words, kept, inside = shlex.split(command), [], False
    for word in words:
        inside = word == "--rows" or (inside and not word.startswith("-"))
        if not inside:
            kept.append(word)
    return shlex.join([*kept, "--rows", *rows])


def cell_grid(frame: pd.DataFrame, row: str) -> list[list[str]]:
    """`cells` as text: a line a row of the table, three columns a published method, one another.

    Args:
        frame: From `cells`.
        row: What each row is about.
    """
    methods = list(dict.fromkeys(frame["method"]))
    head = [row.capitalize()]
    for method in methods:
        talked = method in METHODS.values()
        head += [f"{method}: talk", "ours", "ours − talk"] if talked else [f"{method}: ours"]
    grid = [head]
    for _, block in frame.groupby("row", sort=False):
        lines = {line["method"]: line for line in _lines(block)}
        texts = [str(block["label"].iloc[0])]
        for method in methods:
            line = lines.get(method, {})
            ours = _spread(line.get("ours"), line.get("sd"))
            if method in METHODS.values():
                texts += [_spread(line["published"], line["published_sd"]), ours, _interval(line)]
            else:
                texts.append(ours)
        grid.append(texts)
    return grid


def gain_grid(frame: pd.DataFrame, row: str) -> list[list[str]]:
    """`gains` as text, a line a row of the table and comparison; arguments as there."""
    head = [
        row.capitalize(), "comparison", "claimed", "ours [95 %]", "p (Holm)", "the gain claimed is",
    ]  # fmt: skip
    return [head] + [
        [
            line["label"], f"{line['method']} − {line['baseline']}", _number(line["claimed"], "+"),
            _starred(line), "–" if math.isnan(line["p"]) else f"{line['p']:.2g}",
            line["verdict"] or "–",
        ]
        for line in _lines(frame)
    ]  # fmt: skip


def rank_grid(found: Ranks) -> list[list[str]]:
    """`ranks` as text: mean ranks first, then the pairs."""
    grid = [["", "value"]]
    grid += [[f"mean rank of {method}", f"{rank:.2f}"] for method, rank in found.ranks.items()]
    grid.append(["critical difference (Nemenyi, 5 %)", f"{found.critical_difference:.2f}"])
    grid.append(["p of equal ranks (Friedman)", f"{found.friedman:.2g}"])
    grid += [
        [f"p of {a} against {b} (Wilcoxon, Holm)", f"{p:.2g}"] for (a, b), p in found.pairs.items()
    ]
    return grid


def markdown(grid: Sequence[Sequence[str]]) -> str:
    """A grid as a Markdown table."""
    rule = ["---"] * len(grid[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in [grid[0], rule, *grid[1:]])


def latex(grid: Sequence[Sequence[str]]) -> str:
    """A grid as a LaTeX tabular with booktabs rules."""
    symbols = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#",
               "±": r"$\pm$", "−": "$-$", "–": "--"}  # fmt: skip
    rows = [
        " & ".join("".join(symbols.get(c, c) for c in text) for text in row) + r" \\"
        for row in grid
    ]
    columns = "l" * len(grid[0])
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _lines(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _interval(line: Mapping[str, Any]) -> str:
    if math.isnan(line["difference"]):
        return "–"
    ends = "" if math.isnan(line["low"]) else f" [{_number(line['low'])}, {_number(line['high'])}]"
    return _number(line["difference"], "+") + ends


def _starred(line: Mapping[str, Any]) -> str:
    return _interval(line) + ("*" if line["p"] < 0.05 else "")


def _spread(mean: float | None, sd: float | None) -> str:
    if mean is None or math.isnan(mean):
        return "not run"
    return f"{mean:.2f}" + ("" if sd is None or math.isnan(sd) else f" ± {sd:.2f}")


def _number(value: float, sign: str = "") -> str:
    rounded = round(value, 2) + 0.0  # no −0.00
    return "–" if math.isnan(value) else f"{rounded:{sign}.2f}".replace("-", "−")
