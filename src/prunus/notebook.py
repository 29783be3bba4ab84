"""Results as HTML for notebooks: words, tables, pictures; no script, no request, own colours."""

import html
import math
import re
from collections.abc import Mapping, Sequence

from prunus.cells import cell_text, right_aligned
from prunus.files import Rows

__all__ = ["histogram", "view"]

SHOWN = 60  # lines of a table; a notebook is no place for thousands
BINS = 30
# Colours come from the notebook's own text, so that dark ones stay readable.
STYLE = (
    "<style>.prunus{max-width:64rem}.prunus table{border-collapse:collapse;margin:.5em 0}"
    ".prunus th,.prunus td{padding:.2em .7em;text-align:left;border-bottom:1px solid #8884}"
    ".prunus td.n,.prunus th.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".prunus p{margin:.3em 0}.prunus svg{max-width:100%;height:auto}</style>"
)


def view(words: Sequence[str], tables: Sequence[Rows] = (), *, pictures: Sequence[str] = ()) -> str:
    """An HTML fragment: paragraphs, pictures side by side, then tables.

    Args:
        words: paragraphs, as text in which `code` is understood; the first stands out.
        tables: rows of cells; strings, numbers or None.
        pictures: `<svg>` elements made by us; empty ones are left out.
    """
    said = [re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(t)) for t in words if t]
    first = [f"<p><strong>{said[0]}</strong></p>"] if said else []
    drawn = "".join(picture for picture in pictures if picture)
    parts = [*first, *(f"<p>{text}</p>" for text in said[1:])]
    parts += [f"<div>{drawn}</div>"] if drawn else []
    parts += [_table(rows) for rows in tables if rows]
    return f'<div class="prunus">{STYLE}{"".join(parts)}</div>'


def _table(rows: Rows) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = right_aligned(rows, columns)

    def line(tag: str, cells: Mapping[str, str]) -> str:
        inside = "".join(
            f"<{tag}{' class=n' if c in numeric else ''}>{html.escape(cells[c])}</{tag}>"
            for c in columns
        )
        return f"<tr>{inside}</tr>"

    head = line("th", {c: c.replace("_", " ") for c in columns})
    body = "".join(line("td", {c: cell_text(row.get(c)) for c in columns}) for row in rows[:SHOWN])
    more = f"<p>… and {len(rows) - SHOWN} more</p>" if len(rows) > SHOWN else ""
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{more}"


def histogram(values: Sequence[float], title: str, *, bins: int = BINS) -> str:
    """Counts of positive finite numbers between edges that are even in the logarithm, as SVG."""
    seen = [v for v in values if v > 0 and math.isfinite(v)]
    if not seen:
        return ""
    low, high = math.log(min(seen)), math.log(max(seen))
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in seen:
        counts[min(bins - 1, int((math.log(value) - low) / width))] += 1
    top = max(counts)
    bars = "".join(
        f'<rect x="{10 * i}" y="{80 - 76 * n / top:.1f}" width="9" height="{76 * n / top:.1f}" '
        f'fill="#56B4E9"/>'
        for i, n in enumerate(counts)
    )
    words = html.escape(f"{title}: {min(seen):.3g} to {max(seen):.3g}, {len(seen)} inputs")
    return (
        f'<svg width="{10 * bins}" height="100" viewBox="0 0 {10 * bins} 100" role="img" '
        f'aria-label="{words}">{bars}'
        f'<text x="0" y="95" font-size="11" fill="currentColor">{words}</text></svg>'
    )
