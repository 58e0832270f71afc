"""Pieces of HTML that show a report, in a notebook or on a page of its own."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

STYLE = """
.mixup-theory{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a}
.mixup-theory .scroll{overflow-x:auto}
.mixup-theory table{border-collapse:collapse;font-size:14px;margin:.6em 0}
.mixup-theory th,.mixup-theory td{text-align:left;padding:.3em .7em;border-bottom:1px solid #ddd;
vertical-align:top}
.mixup-theory .number{text-align:right;font-variant-numeric:tabular-nums}
.mixup-theory .holds{color:#00572d;font-weight:600}
.mixup-theory .fails{color:#a3002c;font-weight:600}
.mixup-theory .not-measured{color:#595959}
.mixup-theory p.note{color:#595959;font-size:13px;margin:.2em 0}
""".strip()
_SIDE, _MARGIN = 260, 46


def table(
    rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), identifier: str = ""
) -> str:
    """A table whose first row is its head. Cells are text, or `Markup` that stands as it is.

    Args:
        rows: Cells, row by row.
        numbers: Columns that are set like numbers.
        identifier: The table's id on its page.
    """
    lines = []
    for k, row in enumerate(rows):
        tag = "td" if k else 'th scope="col"'
        cells = [
            f"<{tag}{' class=number' if column in numbers else ''}>{_text(cell)}</{tag[:2]}>"
            for column, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    name = f' id="{escape(identifier)}"' if identifier else ""
    head, body = lines[0], "\n".join(lines[1:])
    content = f"<thead>{head}</thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table{name}>{content}</table></div>'


class Markup(str):
    """Text that is HTML already."""


def verdict(text: str, details: str = "") -> Markup:
    """A verdict in its colour (and in words: colour alone would not do), details after it."""
    kind = text.lower().replace(" ", "-")
    return Markup(f'<span class="{kind}">{escape(text)}</span>{escape(details)}')


def scatter(q: Float[np.ndarray, " samples"], q_hat: Float[np.ndarray, " samples"]) -> Markup:
    """q̂ against q as an SVG picture with the identity line; equal scales on both axes.

    Args:
        q: Exact, one an example, in nats.
        q_hat: Its approximation.
    """
    known = np.isfinite(q) & np.isfinite(q_hat)
    x, y = q[known], q_hat[known]
    ends = np.concatenate([x, y]) if len(x) else np.array([0.0])
    low, high = float(ends.min()), float(ends.max())
    pad = 0.06 * (high - low) or 1.0
    low, high = low - pad, high + pad

    def place(values: np.ndarray) -> np.ndarray:
        return _MARGIN + (values - low) / (high - low) * _SIDE

    top = _SIDE + 2 * _MARGIN
    points = "".join(
        f'<circle cx="{a:.1f}" cy="{top - b:.1f}" r="2.5"/>'
        for a, b in zip(place(x), place(y), strict=True)
    )
    a, b = _MARGIN, _MARGIN + _SIDE
    labels = [
        f'<text x="{(a + b) / 2}" y="{top - 8}" text-anchor="middle">exact q [nats]</text>',
        f'<text transform="translate(12 {(a + b) / 2}) rotate(-90)" text-anchor="middle">'
        "q̂ [nats]</text>",
    ]
    for value in (low + pad, high - pad):
        at = float(place(np.array([value]))[0])
        labels.append(f'<text x="{at:.1f}" y="{b + 16}" text-anchor="middle">{value:.2g}</text>')
        labels.append(
            f'<text x="{a - 5}" y="{top - at + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        )
    return Markup(
        f'<svg viewBox="0 0 {top} {top}" width="{top}" role="img" '
        'aria-label="q-hat against exact q" style="max-width:100%" font-size="12">'
        f'<path d="M{a} {a}V{b}H{b}" fill="none" stroke="#333"/>'
        f'<path d="M{a} {b}L{b} {a}" stroke="#888" stroke-dasharray="4 3"/>'
        f'<g fill="#0173b2" fill-opacity=".6">{points}</g>{"".join(labels)}</svg>'
    )


def _text(cell: str) -> str:
    return cell if isinstance(cell, Markup) else escape(cell)
