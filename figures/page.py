"""A check as one HTML file that needs nothing else: verdicts, figures, samples, settings."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from figures.check_approx import panels_of, plot_panel
from theory.html import STYLE, table
from theory.record import write_atomically
from theory.report import Report, claims_html, correction_rows, order_rows, segments_summary

NAME = "report.html"
_PAGE_STYLE = """
body{margin:0 auto;max-width:62rem;padding:1rem}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.15rem;margin:1.6em 0 .3em}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
figure{margin:0;break-inside:avoid}img{max-width:100%;height:auto}
th button{font:inherit;background:none;border:0;padding:0;cursor:pointer;text-decoration:underline
dotted}
th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f5f5;padding:.6em}
@media print{body{max-width:none;padding:0}.scroll{overflow:visible!important}
table{font-size:9px!important}th button{text-decoration:none}h2{break-after:avoid}}
"""
# Sorts a table by the column whose head was pressed; numbers as numbers.
_SCRIPT = """
for (const table of document.querySelectorAll("table[id]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => Number(row.cells[column].textContent.replace("−", "-"));
      const rows = [...table.tBodies[0].rows].sort((a, b) => value(a) - value(b));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    };
  });
}
"""


def page(reports: Sequence[Report], command: str = "") -> str:
    """The page as text.

    Args:
        reports: The checks of one run, in order.
        command: What made them.
    """
    last = reports[-1]
    shown = reports if len(reports) == 1 else [reports[0], last]
    name = f"{Path(str(last.settings.get('model', 'network'))).name}"
    data = Path(str(last.settings.get("data", "own data"))).name
    title = f"Does q̂ ≈ q hold? {name} on {data}"
    parts = [f"<h1>{escape(title)}</h1>", "<h2>Claims</h2>", claims_html(shown)]
    pictures = "".join(_picture(panel, reports) for panel in panels_of(reports))
    parts.append(f'<h2>Figures</h2><div class="figures">{pictures}</div>')
    if len(last.corrections):
        parts.append("<h2>What would mend q̂</h2>")
        parts.append(table(correction_rows(shown), numbers=range(1, 3 + 2 * len(shown))))
    if last.orders:
        rows, notes = order_rows(last)
        parts += ["<h2>Theorem 1 order by order</h2>", table(rows), *map(_note, notes)]
    if last.segments:
        parts.append(_note(segments_summary(last)))
    parts += ["<h2>Samples</h2>", _note("Last check; losses and terms in nats. Heads sort.")]
    parts.append(_samples(last))
    parts += ["<h2>Settings</h2>", _pairs({**last.training, **last.settings})]
    parts.append("<h2>Made by</h2>")
    parts += [f"<pre>{escape(command)}</pre>"] if command else []
    versions = last.environment.get("versions", {})
    parts.append(_pairs({k: v for k, v in last.environment.items() if k != "versions"} | versions))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_PAGE_STYLE}</style></head>\n"
        f'<body class="mixup-theory">\n{body}\n<script>{_SCRIPT}</script></body></html>\n'
    )


def save(folder: Path, reports: Sequence[Report], command: str = "") -> Path:
    """Writes report.html; returns the file.

    Raises:
        InputError: If the folder cannot be written to.
    """
    path, text = folder / NAME, page(reports, command)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _picture(panel: str, reports: Sequence[Report]) -> str:
    content = io.BytesIO()
    plot_panel(panel, reports).savefig(content, format="png")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<figure><img alt="{escape(panel)}" src="data:image/png;base64,{data}"></figure>'


def _samples(report: Report) -> str:
    columns = list(report.samples.columns)
    rows = [["sample", *(column.replace("_", " ") for column in columns)]]
    for number, row in enumerate(report.samples.to_numpy()):
        rows.append([str(number), *(f"{value:.4g}" for value in row)])
    return table(rows, numbers=range(len(columns) + 1), identifier="samples")


def _pairs(facts: Mapping[str, Any]) -> str:
    return table([["name", "value"], *([str(k), str(v)] for k, v in facts.items())])


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
