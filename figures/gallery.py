"""Every figure by name, drawn from records: what it shows, and where its numbers come from.

A figure's name is its record's folder below the root and its own name: toy/bias,
check_approx/preact50-digits-mixupe-paper/q, campaign/small-cifar10/losses, tables/4/gains.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep.campaign import PLAN
from deep.run_folder import RECIPE, read_lines, read_object
from figures import check_approx, deformations, losses, mixing, published, studies, tables, training
from figures.drawing import Drawing
from figures.runs import RECORD, name_of, read_runs
from theory.record import parse_json, read_text, recorded
from theory.report import read_reports

_REPORT, _ROBUSTNESS = "report.json", "robustness.json"


@dataclass(frozen=True)
class Entry:
    """A figure and what it is drawn from.

    Attributes:
        drawing: The figure.
        records: Files of its numbers; empty where it shows none.
    """

    drawing: Drawing
    records: Sequence[Path]


def of_record(path: Path) -> dict[str, Entry]:
    """The figures of one record, or of a folder that holds records side by side.

    Args:
        path: A report of theory.check_approx, by any name; a folder of deep.train, or of such
            folders; runs.jsonl of deep.campaign, robustness.json of deep.robustness, record.jsonl
            of deep.table, a study's .json; or a folder with some of these.

    Raises:
        InputError: If it is no record that can be drawn.
    """
    if path.is_dir():
        inside = [file for file in sorted(path.iterdir()) if file.name in _KINDS]
        if not inside and not any(path.glob("**/" + RECIPE)):
            inside = sorted(path.glob("*.json"))  # of studies
        found: dict[str, Entry] = {}
        for file in inside:
            found |= of_record(file)
        return found or _entries(path, _of_runs(path))
    with recorded(path):
        return _entries(path, _KINDS.get(path.name, _of_json)(path))


def _entries(path: Path, drawings: Mapping[str, Drawing]) -> dict[str, Entry]:
    return {name: Entry(drawing, [path]) for name, drawing in drawings.items()}


def _of_runs(path: Path) -> dict[str, Drawing]:
    # Checks of several networks have no figure together; each run's own folder has one.
    watched = {name_of(run) for run in read_runs(path) if run["checks"]}
    return {
        **losses.drawings(losses.read(path)),
        **(training.drawings(training.read(path)) if len(watched) == 1 else {}),
    }


def _of_json(path: Path) -> dict[str, Drawing]:
    """Of a report by whatever name, or of a study."""
    content = parse_json(read_text(path, "", "name a record"), path)
    if isinstance(content, dict) and "schema_version" in content:
        return check_approx.drawings(read_reports(path))
    return studies.drawings(studies.read(path))


_KINDS = {
    _REPORT: lambda path: check_approx.drawings(read_reports(path)),
    RECORD: _of_runs,
    _ROBUSTNESS: lambda path: deformations.drawings(deformations.read(path)),
    tables.RECORD: lambda path: tables.drawings(tables.read(path)),
}


def gallery(root: Path) -> dict[str, Entry]:
    """Every figure that records below a folder can fill, by name, and those that need none.

    Args:
        root: Such a folder as results/.

    Raises:
        InputError: If a record cannot be read.
    """
    entries = {name: Entry(drawing, []) for name, drawing in mixing.drawings().items()}
    with recorded(root):
        entries |= {name: Entry(*pair) for name, pair in published.drawings(root).items()}
    files = [file for name in _KINDS for file in root.rglob(name)]
    files += [*root.glob("toy/*.json"), *root.glob("generalization/*/*.json")]
    for file in sorted(files):
        folder = file.parent.relative_to(root)
        entries |= {(folder / name).as_posix(): e for name, e in of_record(file).items()}
    return entries


def about(entry: Entry) -> str:
    """The caption, and for each record its path, command, commit and date, as lines of text."""
    lines = [entry.drawing.caption]
    for path in entry.records:
        lines += ["", f"record:  {path}"]
        for command, commit, date in _origins(path):
            lines += [f"command: {command}", f"commit:  {commit or 'unknown'}", f"date:    {date}"]
    return "\n".join(lines) + "\n"


def _origins(path: Path) -> list[tuple[str, str, str]]:
    """(command, commit, date) of each run in a record, each once."""
    if path.is_dir():
        results = [read_object(file) for file in sorted(path.rglob("result.json"))]
    elif path.name == RECORD and (path.parent / PLAN).exists():
        command = read_object(path.parent / PLAN)["command"]
        results = [{**(line["result"] or {}), "command": command} for line in read_lines(path)]
    elif path.suffix == ".jsonl":
        results = [line.get("result") or line for line in read_lines(path)]
    else:
        results = [read_object(path)]
    return list(dict.fromkeys(map(_origin, results)))


def _origin(result: Mapping[str, Any]) -> tuple[str, str, str]:
    environment = result.get("environment", {})
    commit = str(environment.get("commit") or "")
    # Older records have no date of their own.
    date = environment.get("date") or _date_of(commit) or "unknown"
    return str(result.get("command", "not recorded")), commit, date[:10]


def _date_of(commit: str) -> str:
    """Day of a commit of this checkout; empty if git does not know it."""
    known = commit.removesuffix("+changes")
    if not known:
        return ""
    git = ["git", "-C", str(Path(__file__).parent), "show", "--no-patch", "--format=%cs", known]
    try:
        shown = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return shown.stdout.strip()
