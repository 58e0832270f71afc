"""Command: `python -m toy` draws the talk's two figures; a subcommand runs one study.

Each study writes its record (`NAME.json`: every number, with the command) and its figure
(`NAME.png`, `NAME.pdf`).
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from theory.command import run_command
from theory.errors import InputError
from theory.record import command_line, environment, writable, write_json
from toy import studies
from toy.studies import Common, Record

PROG = "python -m toy"


@dataclass(frozen=True)
class Talk:
    """Both figures of the talk with their defaults (also what no subcommand does)."""

    out: Path = Path("runs/toy")
    """Folder for the JSON records and the figures"""
    debug: bool = False
    """Show the traceback of an error"""


Command = (
    Annotated[Talk, tyro.conf.subcommand("talk")]
    | Annotated[studies.Bias, tyro.conf.subcommand("bias")]
    | Annotated[studies.Descent, tyro.conf.subcommand("descent")]
    | Annotated[studies.Soft, tyro.conf.subcommand("soft")]
    | Annotated[studies.Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[studies.Relu, tyro.conf.subcommand("relu")]
    | Annotated[studies.Boundary, tyro.conf.subcommand("boundary")]
    | Annotated[studies.Separable, tyro.conf.subcommand("separable")]
)


@dataclass(frozen=True)
class Toy:
    """Implicit bias of ERM and Mixup on toy data."""

    command: Annotated[Command, tyro.conf.arg(name="")]

    @property
    def debug(self) -> bool:
        """Show the traceback of an error."""
        return self.command.debug


_STUDIES: dict[type, Callable[..., Record]] = {
    studies.Bias: studies.measure_bias,
    studies.Descent: studies.measure_descent,
    studies.Soft: studies.measure_soft,
    studies.Sweep: studies.measure_sweep,
    studies.Relu: studies.measure_relu,
    studies.Boundary: studies.measure_boundary,
    studies.Separable: studies.measure_separable,
}


def save(folder: Path, record: Record) -> list[Path]:
    """Write a record and its figure if it has one, each file as a whole.

    Raises:
        InputError: If the folder cannot be written to.
    """
    # Not at the top: the figures take longer to load than all else that --help does.
    from figures.drawing import save as save_figures
    from figures.studies import drawings

    path = folder / f"{record['study']}.json"
    write_json(path, {"command": command_line("toy"), **record, "environment": environment()})
    return [path, *save_figures(folder, drawings(record), ("png", "pdf"))]


def _print_bias(record: Record) -> None:
    reference = record["max_margin"]
    worst = max(reference["kkt_residuals"].values())
    print(f"max margin {reference['margin']:.6g}, largest KKT residual {worst:.1e}")
    for protocol, rates in record.get("rates", {}).items():
        print(f"{protocol}:")
        for rate in rates:
            numbers = f"{rate['fitted']:+.5f} ± {rate['stderr']:.1g}"
            print(f"  {rate['name']:<26} {numbers:<22} theory {rate['theory']:+.5f}")
    for note in record.get("notes", []):
        print(f"no rates for {note}")
    if soft := record.get("soft_minimiser"):
        print(
            f"mixup-soft stops at a finite minimiser: ‖w‖ = {soft['norm']:.6g}, loss "
            f"{soft['loss']:.6g}, {soft['angle_degrees']:.3g}° from the max-margin direction"
        )


def _print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    print("  ".join(f"{name:>14}" for name in columns))
    for row in rows:
        cells = (row[name] for name in columns)
        print("  ".join(f"{c:>14}" if isinstance(c, str) else f"{c:>14.6g}" for c in cells))


def _print_separable(record: Record) -> None:
    name = record["settings"]["data"]
    if record["separable"]:
        reference = record["max_margin"]
        worst = max(reference["kkt_residuals"].values())
        print(
            f"{name}: separable, margin {reference['margin']:.6g}, {len(reference['support'])} "
            f"support vectors, largest KKT residual {worst:.1e}"
        )
    else:
        points = sum(weight > 1e-12 for weight in record["weights"])
        print(
            f"{name}: not separable, {points} points y·x have a convex combination of size "
            f"{record['residual']:.1e} (the weights are in the record)"
        )


class Reporter:
    """Says how far a study is: on a terminal in one line, elsewhere a line every 10 seconds."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Show the text if the last one is old enough."""
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else 10.0):
            return
        self._last = now
        line = f"{text} ({now - self._start:.0f} s)"
        print(
            f"\r\033[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Leave an empty line to what follows."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def summarise(record: Record) -> None:
    """Print what a study found."""
    study = record["study"]
    if study == "bias":
        _print_bias(record)
    elif study == "soft":
        columns = ["norm", "loss", "angle_degrees", "gradient_norm"]
        _print_rows(record["by_alpha"], ["alpha", *columns])
        _print_rows(record["by_margin"], ["margin", *columns])
        if not all(row["unique"] for row in record["by_alpha"]):
            print("not unique: the points do not span the space; the shortest minimiser is shown")
    elif study == "separable":
        _print_separable(record)
    elif study == "boundary":
        columns = ["label", "train_accuracy", "test_accuracy", "test_loss", "confidence", "slope"]
        _print_rows(record["panels"], columns)
    else:
        last = [
            {k: v[-1] if isinstance(v, list) else v for k, v in row.items()}
            for row in record["series"]
        ]
        hidden = ("last_w", "residual", "log_t", "steps")
        _print_rows(last, [name for name in last[0] if name not in hidden])


def run(flags: Toy) -> int:
    """Measure, save, draw and print one command; the exit code."""
    config = flags.command
    # Layers of 64 units are too small to share: a second thread costs more than it gives.
    torch.set_num_threads(1)
    chosen: list[Common] = (
        [studies.Bias(out=config.out), studies.Boundary(out=config.out)]
        if isinstance(config, Talk)
        else [config]
    )
    with writable(config.out):
        for settings in chosen:
            measure = _STUDIES[type(settings)]
            report = Reporter()
            try:
                record = measure(settings, report)
            except MemoryError:
                raise InputError("that does not fit in memory: choose fewer or smaller") from None
            finally:
                report.close()
            summarise(record)
            print(f"Written to {', '.join(map(str, save(settings.out, record)))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["talk", *argv]
    return run_command(Toy, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
