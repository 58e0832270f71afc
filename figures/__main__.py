"""Command: `python -m figures [NAME or RECORD …]` draws what was recorded, with captions."""

import fnmatch
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from figures.drawing import save
from figures.gallery import Entry, about, gallery, of_record
from figures.style import Look, look
from theory.command import run_command
from theory.errors import InputError
from theory.record import check_writable, recorded, write_atomically

PROG = "python -m figures"


@dataclass(frozen=True)
class Config:
    """Draw figures of records: all below results/, those named, or those of one record."""

    what: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names as --list shows them (with * and ?), all if none is given; or a record:
    what theory.check_approx or `Report.to_json` wrote; a folder of deep.train, of such folders;
    runs.jsonl of deep.campaign or deep.grid; robustness.json; record.jsonl of deep.table; a study's
    .json; or a folder of these"""
    list: bool = False
    """Only say which figures there are"""
    results: Path = Path("results")
    """Folder whose records have names"""
    out: Path | None = None
    """Folder for the figures; a record's own, or runs/figures for names, if not given"""
    style: Look = "screen"
    """Sizes for a screen, for a paper's columns (UAI's: 3.25 and 6.75 in), or for slides"""
    formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")
    """Files of each figure"""
    debug: bool = False
    """Show the traceback of an error"""


def run(config: Config) -> int:
    """Finds the records, draws, names the files."""
    for folder, entries in _chosen(config):
        for name, entry in entries.items():
            if config.list:
                source = ", ".join(map(str, entry.records)) or "no record"
                print(f"{name}\n    {entry.drawing.caption}\n    {source}")
                continue
            path = folder / name
            origin = entry.records[0] if entry.records else config.results
            with recorded(origin), look(config.style):
                drawn = save(path.parent, {path.name: entry.drawing}, config.formats)
            caption = path.with_name(f"{path.name}.txt")
            with recorded(origin):
                text = about(entry)
            write_atomically(caption, partial(Path.write_text, data=text, encoding="utf-8"))
            print(" ".join(map(str, [*drawn, caption])), flush=True)
    return 0


def _chosen(config: Config) -> Sequence[tuple[Path, Mapping[str, Entry]]]:
    """Figures by the folder that they go to."""
    records = [text for text in config.what if Path(text).exists()]
    patterns = [text for text in config.what if text not in records]
    chosen: list[tuple[Path, Mapping[str, Entry]]] = []
    for text in records:
        path = Path(text)
        folder = config.out or (path if path.is_dir() else path.parent)
        chosen.append((folder, of_record(path)))
    if patterns or not records:
        if not config.results.is_dir():
            missing = f"record {patterns[0]}" if patterns else f"folder {config.results}"
            raise InputError(
                f"there is no {missing}: name a record, or by --results a folder of records"
            )
        known = gallery(config.results)
        names: dict[str, Entry] = {}
        for pattern in patterns or ["*"]:
            found = fnmatch.filter(known, pattern)
            if not found:
                raise InputError(f"no figure or record is called {pattern}: see {PROG} --list")
            names |= {name: known[name] for name in found}
        chosen.append((config.out or Path("runs/figures"), names))
    for folder, _ in () if config.list else chosen:
        check_writable(folder)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
