"""The report of a check: claims with verdicts, and every number behind them, to and from JSON."""

import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np
import pandas as pd

from theory import html
from theory.errors import InputError
from theory.record import environment, parse_json, read_text, recorded, with_nan, write_json

SCHEMA_VERSION = 1
Verdict = Literal["HOLDS", "FAILS", "NOT MEASURED"]


@dataclass(frozen=True)
class Claim:
    """One claim of the theory, what was measured, and the threshold it was held against.

    Attributes:
        name: Short key, as in `--fail-on "q_hat>0.5"`.
        statement: The claim in words.
        measure: What `value` is.
        value: The measured number; NaN if it could not be measured.
        comparison: The claim holds if `value` stands in this relation to `threshold`.
        threshold: The bound. It is a setting, not a law.
        low: Lower end of the 95 % bootstrap interval of `value`, NaN where it has none.
        high: Upper end.
        note: What a reader must know, such as why it was not measured.
    """

    name: str
    statement: str
    measure: str
    value: float
    comparison: Literal["<=", ">="]
    threshold: float
    low: float = float("nan")
    high: float = float("nan")
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """HOLDS or FAILS by the measured value alone, NOT MEASURED if there is none."""
        if math.isnan(self.value):
            return "NOT MEASURED"
        holds = (
            self.value <= self.threshold
            if self.comparison == "<="
            else self.value >= self.threshold
        )
        return "HOLDS" if holds else "FAILS"


@dataclass(frozen=True, repr=False)
class Report:
    """What `theory.check_approximation` found for one network in one state.

    All losses and their derivatives are in nats.

    Attributes:
        claims: By name, in the order of the argument: `self_check`, `identity`, `first_order`,
            `normalization`, `homogeneity`, `q_hat`, `gradient`.
        samples: One row an example in the data's order; columns `loss`, `q`, `q_hat`,
            `normalization_gap`, `homogeneity_gap`.
        agreement: Index the statistic (`relative_error`, `pearson`, `spearman`, `sign_agreement`,
            `slope`) of q̂ against q; columns `value`, `low`, `high`.
        attribution: One row a layer with a share in the homogeneity gap, largest first: `layer`,
            `kind`, `mean` (over examples; these sum to the gap's mean), `mean_abs` (of the
            examples' shares, NaN where only the total is known). What no module accounts for
            stands in the row "(unattributed)".
        corrections: What would mend q̂, as from `theory.corrections.corrections_frame`; empty in
            records made before it was measured.
        alignment: As from `theory.alignment.gradient_alignment`; empty if it was not asked for.
        regularizer: Exact regulariser and its first order on all pairs of a part of the examples,
            as from `theory.regularizer.measure_theorem_1`. Under `sampled` the estimate of R over
            all examples, as from `theory.expectation.sampled_regularizer`. Empty where it is not
            defined (batch statistics).
        orders: Higher orders on the same pairs, as from `theory.orders.measure_orders`; empty for
            order 1.
        segments: R pair by pair along ReLU segments, as from `theory.kinks.segment_regularizer`,
            with the pairs' indices; under `segment` one pair, of median `counts`: its place in
            these lists, and breakpoints and logits as in `theory.segments.Pieces`. Empty unless it
            was asked for.
        self_check: Errors of the derivatives against central differences.
        settings: What the check was asked to do.
        training: Where in training this was measured: `epoch`, `step`, `train_loss`; may be empty.
        environment: Versions, platform, commit.
    """

    claims: dict[str, Claim]
    samples: pd.DataFrame
    agreement: pd.DataFrame
    attribution: pd.DataFrame
    alignment: pd.DataFrame
    regularizer: dict[str, Any]
    self_check: dict[str, Any]
    settings: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    corrections: pd.DataFrame = field(default_factory=pd.DataFrame)
    orders: dict[str, Any] = field(default_factory=dict)
    segments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=environment)

    def __repr__(self) -> str:
        """The table of claims, for a prompt as for print: as data frames are shown."""
        parts = [claims_table([self])]
        parts += [orders_table(self)] if self.orders else []
        parts += [segments_summary(self)] if self.segments else []
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        """What Jupyter shows: the claims, and q̂ against q."""
        picture = html.scatter(self.samples["q"].to_numpy(), self.samples["q_hat"].to_numpy())
        parts = [f"<style>{html.STYLE}</style>", claims_html([self]), picture]
        return f'<div class="mixup-theory">{"".join(parts)}</div>'

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes this report as a JSON file; see `read_reports` for the way back.

        Raises:
            InputError: If the file cannot be written.
        """
        write_reports(path, [self])


# Columns of each table that are numbers; those of the first two are always there.
_NUMBERS = {
    "samples": ("loss", "q", "q_hat", "normalization_gap", "homogeneity_gap"),
    "agreement": ("value", "low", "high"),
    "attribution": ("mean", "mean_abs"),
    "corrections": ("forwards", "penalty_forwards", "relative_error", "pearson"),
    "alignment": (),
}
_FRAMES = tuple(_NUMBERS)


def write_reports(
    path: str | os.PathLike[str], reports: Sequence[Report], **run: Any
) -> None:  # fmt: skip
    """Writes the reports of one run, in order, as one JSON file.

    Args:
        path: Target; replaced as a whole or not at all.
        reports: At least one; they share an environment.
        **run: Further facts about the run, such as its command.
    """
    checks = []
    for report in reports:
        check = {
            "training": report.training,
            "settings": report.settings,
            "claims": {
                name: {**asdict(claim), "verdict": claim.verdict}
                for name, claim in report.claims.items()
            },
            "regularizer": report.regularizer,
            "orders": report.orders,
            "segments": report.segments,
            "self_check": report.self_check,
        }
        for name in _FRAMES:
            frame = getattr(report, name)
            frame = frame.reset_index(names="statistic") if name == "agreement" else frame
            check[name] = frame.to_dict("list")
        checks.append(check)
    content = {
        "schema_version": SCHEMA_VERSION,
        **run,
        "environment": reports[-1].environment,
        "checks": checks,
    }
    write_json(path, content)


def read_reports(path: str | os.PathLike[str]) -> list[Report]:
    """The reports of a file written by `write_reports` or `Report.to_json`.

    Raises:
        InputError: If the file is missing, no such report, or of another schema version.
    """
    content = parse_json(read_text(path, "", "name a report.json"), path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise InputError(f"{path} is no report: name a report.json")
    if (version := content["schema_version"]) != SCHEMA_VERSION:
        raise InputError(
            f"{path} has report schema {version}, this version reads {SCHEMA_VERSION}: measure anew"
        )
    with recorded(path):
        reports = [_report(check, content["environment"]) for check in content["checks"]]
        if not reports:
            raise ValueError("there is no check in it")
    return reports


def _report(check: Mapping[str, Any], environment: dict[str, Any]) -> Report:
    """A report from its part of the file; raises whatever its having another shape leads to."""
    frames: dict[str, Any] = {name: pd.DataFrame(check.get(name, {})) for name in _FRAMES}
    frames["agreement"] = frames["agreement"].set_index("statistic")
    for name, columns in _NUMBERS.items():
        frame = frames[name] = frames[name].infer_objects().fillna(math.nan)
        for column in columns if len(frame) or name in ("samples", "agreement") else ():
            frame[column] = pd.to_numeric(frame[column])
    parts = {k: check[k] for k in ("settings", "training")} | {"environment": environment}
    parts |= {name: with_nan(check[name]) for name in ("regularizer", "self_check")}
    parts |= {name: with_nan(check.get(name, {})) for name in ("orders", "segments")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise TypeError(f"{name} is {type(part).__name__}")
    if "tolerance" in (sampled := parts["regularizer"].get("sampled", {})):
        # Among these numbers the one setting, for which null means that none was asked for.
        sampled["tolerance"] = check["regularizer"]["sampled"]["tolerance"]
    return Report(
        claims={name: _claim(entry) for name, entry in check["claims"].items()}, **frames, **parts
    )


def _claim(entry: Mapping[str, Any]) -> Claim:
    numbers = ("value", "threshold", "low", "high")
    texts = ("name", "statement", "measure", "comparison", "note")
    for name in texts:
        if not isinstance(entry[name], str):
            raise TypeError(f"a claim's {name} is {type(entry[name]).__name__}")
    if entry["comparison"] not in ("<=", ">="):
        raise ValueError(f"a claim compares by {entry['comparison']}")
    values: dict[str, Any] = {name: entry[name] for name in texts}
    values |= {k: math.nan if entry[k] is None else float(entry[k]) for k in numbers}
    return Claim(**values)


def claims_table(reports: Sequence[Report]) -> str:
    """The claims of reports as a table, one row a claim and one column a report."""
    columns = [report.claims for report in reports]
    interval = "95 % bootstrap interval over the samples"
    return tabulate_claims(_titles(reports), columns, interval)


def tabulate_claims(
    titles: Sequence[str], columns: Sequence[Mapping[str, Claim]], interval: str
) -> str:
    """Claims measured in several cases as a table, with the notes of the last case below.

    Args:
        titles: Of the cases.
        columns: The claims of each case, by name; the names are those of the last case.
        interval: What the intervals are.
    """
    rows = [["name", "claim", "measured as", "holds if", *titles]]
    notes: list[str] = []
    for name, claim in columns[-1].items():
        found = [claims[name] for claims in columns]
        rows.append([name, claim.statement, claim.measure, _bound(found), *map(_cell, found)])
        if claim.note:
            notes.append(f"{name}{_when(titles, found)}: {claim.note}")
    if any(not math.isnan(claim.low) for claims in columns for claim in claims.values()):
        notes.append(f"[low, high]: {interval}")
    return "\n".join([*align(rows), *notes])


def claims_html(reports: Sequence[Report]) -> str:
    """The claims of reports as an HTML table with its notes, the verdicts beside the claims."""
    last, titles = reports[-1].claims, _titles(reports)
    rows: list[list[str]] = [["claim", *titles, "measured as", "holds if"]]
    notes: list[str] = []
    for name, claim in last.items():
        found = [report.claims[name] for report in reports]
        cells = [html.verdict(one.verdict, _value(one)) for one in found]
        rows.append([claim.statement, *cells, claim.measure, _bound(found)])
        if claim.note:
            notes.append(f"{claim.statement}{_when(titles, found)}: {claim.note}")
    notes.append("[low, high]: 95 % bootstrap interval over the samples")
    return html.table(rows) + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def corrections_table(reports: Sequence[Report]) -> str:
    """What would mend q̂, as text."""
    return "\n".join(align(correction_rows(reports)))


def correction_rows(reports: Sequence[Report]) -> list[list[str]]:
    """What would mend q̂, one row an approximation: its two costs, then each report's error."""
    titles = _titles(reports)
    header = ["approximation", "forwards", "as penalty"]
    rows = [[*header, *(f"{part}, {title}" for title in titles for part in ("error", "Pearson"))]]
    frames: list[dict[Any, dict[Any, float]]] = [
        report.corrections.set_index("approximation").to_dict("index") for report in reports
    ]
    missing = {"relative_error": math.nan, "pearson": math.nan}
    for name, row in frames[-1].items():
        cells = [f"{row[k]:.1f}" for k in ("forwards", "penalty_forwards")]
        for found in (frame.get(name, missing) for frame in frames):
            cells += [f"{found['relative_error']:.3g}", f"{found['pearson']:+.2f}"]
        rows.append([str(name), *cells])
    return rows


def orders_table(report: Report) -> str:
    """Theorem 1 order by order, as text; see `order_rows`."""
    rows, notes = order_rows(report)
    return "\n".join([*align(rows), *notes])


def order_rows(report: Report) -> tuple[list[list[str]], list[str]]:
    """Theorem 1 order by order: one row an order, and notes on what no order sees.

    Args:
        report: One with `orders`.
    """
    found = report.orders
    header = ["order K", "R_K", "nested form", "|R − R_K| / |R|", "nested", "nearer than R_1"]
    rows = [header] + [
        [
            str(k + 1),
            *(f"{found[name][k]:.4g}" for name in ("composite", "nested")),
            *(f"{found[f'rest_{name}'][k]:.3g}" for name in ("composite", "nested")),
            f"{found['nearer_than_first'][k]:.0%} of samples" if k else "",
        ]
        for k in range(found["order"])
    ]
    exponents = [_number(e) for e in found["remainders"]["exponents"]["of_loss"]]
    what = "kinks alone" if found["affine_pieces"] else "bending of f"
    notes = [
        f"R = {found['r']:.4g} on {found['pairs']} pairs of {found['samples']} samples; the "
        f"network's tangent gives {found['tangent']:.4g}, the {what} {found['bending']:+.4g}",
        f"the loss's remainders decay like a^p, p = {', '.join(exponents)} for K = 1, 2, … "
        "(none: lost in rounding)",
    ]
    if found["convergence"]:
        radius = found["convergence"]["median_radius"]
        inside = found["convergence"]["mass_inside_of_sample"]
        notes.append(
            f"radius of convergence, median over pairs: {_number(radius['ratio'])} (ratio), "
            f"{_number(radius['root'])} (root), {_number(radius['domb_sykes'])} (Domb–Sykes); "
            f"of a's law {sum(inside) / len(inside):.0%} lies inside the root's"
        )
    return rows, notes


def segments_summary(report: Report) -> str:
    """What the segments of a ReLU network carry, in one line."""
    found = report.segments
    total, smooth = (np.mean(found[name]) for name in ("total", "smooth"))
    apart = np.array(found["pairs"]["i"]) != np.array(found["pairs"]["j"])
    counts, covered = (np.array(found[name])[apart] for name in ("counts", "covered"))
    least = "at least " if (covered < 1).any() else ""
    line = (
        f"kink by kink: R = {total:.4g} on {len(apart)} pairs, of which the first piece gives "
        f"{smooth:.4g} and kinks {total - smooth:+.4g}; a segment crosses {least}"
        f"{int(np.median(counts)) if len(counts) else 1} linear regions (median)"
    )
    return f"{line}, {covered.mean():.0%} of a's law exactly" if least else line


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2g}"


def _titles(reports: Sequence[Report]) -> list[str]:
    return [
        f"epoch {report.training['epoch']:.3g}" if report.training else "measured"
        for report in reports
    ]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns, a rule below the first."""
    widths = [max(_width(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * w for w in widths))
    return [line.rstrip() for line in lines]


def _width(text: str) -> int:
    """Columns that the text takes: the hat on q̂ takes none."""
    return sum(not unicodedata.combining(character) for character in text)


def _cell(claim: Claim) -> str:
    return claim.verdict + _value(claim)


def _value(claim: Claim) -> str:
    if math.isnan(claim.value):
        return ""
    interval = "" if math.isnan(claim.low) else f" [{claim.low:.3g}, {claim.high:.3g}]"
    return f" {claim.value:.3g}{interval}"


def _bound(found: Sequence[Claim]) -> str:
    """The bound of a claim, or each case's own where they differ."""
    bounds = [f"{claim.threshold:.3g}" for claim in found]
    numbers = ", ".join(bounds if len(set(bounds)) > 1 else bounds[:1])
    return f"{'≤' if found[-1].comparison == '<=' else '≥'} {numbers}"


def _when(titles: Sequence[str], found: Sequence[Claim]) -> str:
    """Which case a claim's last note is about, if the others have another."""
    return "" if len({claim.note for claim in found}) == 1 else f", {titles[-1]}"
