"""One HTML file that holds everything: text, tables, interactive charts and their numbers."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from prunus.cells import UNITS, cell_text, right_aligned
from prunus.files import Rows
from prunus.report.figure import require
from prunus.report.plain import columns_of, plain_json, table_csv

__all__ = [
    "Block",
    "Chart",
    "Drawing",
    "Heading",
    "Section",
    "Table",
    "Text",
    "page",
    "table_csv",
]

# The palette's dark colours, lightened for a dark page.
ON_DARK = {
    "#0072B2": "#4A86E8", "#56B4E9": "#9AD8F7", "#000000": "#E8E8E8", "#8C6D31": "#C9A65E",
    "#C3C9CF": "#4A525B", "#5B6570": "#A3ACB6",
}  # fmt: skip
TRANSPOSED = 5  # a single row of at least so many columns is set upright


@dataclass(frozen=True)
class Text:
    """Paragraphs; `**bold**` and `` `code` `` are understood, everything else is taken literally.

    Attributes:
        text: paragraphs, separated by empty lines.
    """

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section.

    Attributes:
        text: as plain text.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """Rows with a caption and a link to the same numbers as CSV.

    Attributes:
        name: the CSV file's stem; unique on a page.
        rows: one mapping per line; columns are the keys of all rows, in order of appearance.
        caption: what the reader sees, in a sentence.
        titles: a column's heading where its key will not do.
        folded: closed until it is asked for.
        shown: the columns on the page, in this order; all where empty. The CSV file has them all.
    """

    name: str
    rows: Rows
    caption: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False
    shown: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Chart:
    """A Vega-Altair chart with the numbers behind it.

    Attributes:
        name: the CSV file's stem; unique on a page.
        chart: an altair chart, or a Vega-Lite specification as a mapping. A width of "container"
            follows the page.
        rows: the numbers behind it.
        caption: what it shows and how the numbers were made.
        title: heading above it.
        shown: the columns of the numbers below it; all where empty. The CSV file has them all.
    """

    name: str
    chart: Any
    rows: Rows
    caption: str = ""
    title: str = ""
    shown: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG text made by us, with a caption.

    Attributes:
        svg: one `<svg>` element that uses the page's colour classes.
        caption: what it shows.
        title: heading above it.
    """

    svg: str
    caption: str = ""
    title: str = ""


Block = Text | Heading | Table | Chart | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: the heading.
        blocks: from top to bottom; a sequence of blocks stands side by side where there is room.
    """

    title: str
    blocks: Sequence[Block | Sequence[Block]]


def page(
    title: str,
    sections: Sequence[Section],
    *,
    headline: str = "",
    lead: str = "",
    footer: str = "",
) -> str:
    """The HTML text of a report that needs no network and no other file.

    The Vega libraries are inlined once, and only where a chart is; a content-security policy in
    the page keeps it from asking any other place for anything. Equal arguments give equal bytes.

    Args:
        title: the page's title, as plain text.
        sections: from top to bottom.
        headline: what a reader in a hurry takes away, in sentences.
        lead: a sentence or two under it.
        footer: conditions, versions, host.

    Raises:
        ValueError: two tables or charts share a name.
        ImportError: there are charts and the extra `report` is not installed.
    """
    blocks = [b for s in sections for b in _flat(s.blocks)]
    names = [b.name for b in blocks if isinstance(b, Table | Chart)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"Names on a page must differ, got {', '.join(twice)} more than once.")
    charts = [b for b in blocks if isinstance(b, Chart)]
    body = "\n".join(_section(s) for s in sections)
    links = [f'<a href="#{_slug(s.title)}">{html.escape(s.title)}</a>' for s in sections]
    contents = f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""
    scripts = f"<script>{_asset('tables.js')}</script>"
    if charts:
        bundle = require("vl_convert", "report").javascript_bundle()
        specs = plain_json({c.name: _spec(c.chart) for c in charts}, sort_keys=True)
        scripts += (
            f"\n<script>{_inside_script(bundle)}</script>\n"
            f'<script type="application/json" id="charts">{specs}</script>\n'
            f'<script type="application/json" id="on-dark">{plain_json(ON_DARK)}</script>\n'
            f"<script>{_asset('page.js')}</script>"
        )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{_asset("page.css")}</style>\n</head>\n<body>\n'
        f"<header><h1>{html.escape(title)}</h1>{_headline(headline)}{_paragraphs(lead)}"
        f"{contents}</header>\n"
        f"<main>\n{body}\n</main>\n<footer>{_paragraphs(footer)}</footer>\n{scripts}\n"
        "</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return resources.files("prunus.report").joinpath(name).read_text(encoding="utf-8")


def _flat(blocks: Sequence[Block | Sequence[Block]]) -> list[Block]:
    flat: list[Block] = []
    for block in blocks:
        flat += [block] if isinstance(block, Block) else list(block)
    return flat


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _inside_script(text: str) -> str:
    """Code that cannot end the script element it stands in."""
    return re.sub(r"</(?=script)|<!(?=--)", lambda m: f"<\\{m[0][1]}", text, flags=re.IGNORECASE)


def _spec(chart: Any) -> dict[str, Any]:
    spec = dict(chart) if isinstance(chart, Mapping) else chart.to_dict()
    spec.pop("$schema", None)  # an address nobody needs to know
    return spec


def _paragraphs(text: str) -> str:
    parts = [html.escape(part.strip()) for part in text.split("\n\n") if part.strip()]
    marked = (re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part) for part in parts)
    coded = (re.sub(r"`(.+?)`", r"<code>\1</code>", part) for part in marked)
    return "".join(f"<p>{part}</p>" for part in coded)


def _headline(text: str) -> str:
    whole = re.sub(rf"(?<=\d) (?=({UNITS})\b|[%×])", "\u00a0", text)  # no line begins with a unit
    return f'<div class="headline">{_paragraphs(whole)}</div>' if text else ""


def _section(section: Section) -> str:
    parts = []
    for block in section.blocks:
        if isinstance(block, Block):
            parts.append(_block(block))
        else:
            parts.append(f'<div class="side">{"".join(_block(b) for b in block)}</div>')
    return (
        f'<section id="{_slug(section.title)}"><h2>{html.escape(section.title)}</h2>'
        f"{''.join(parts)}</section>"
    )


def _block(block: Block) -> str:
    match block:
        case Text():
            return _paragraphs(block.text)
        case Heading():
            return f'<h3 class="part">{html.escape(block.text)}</h3>'
        case Table():
            table = _table(block.rows, block.titles, block.shown)
            if block.folded:
                table = f"<details><summary>Show {len(block.rows)} rows</summary>{table}</details>"
            caption = f"<figcaption>{_inline(block.caption)} {_csv_link(block)}</figcaption>"
            return f'<figure class="table">{caption}{table}</figure>'
        case Chart():
            numbers = (
                f"<details><summary>Numbers behind this figure</summary>"
                f"{_table(block.rows, {}, block.shown)}</details>"
            )
            return (
                f'<figure class="chart">{_heading(block.title)}'
                f'<div class="plot" id="chart-{html.escape(block.name)}"></div>'
                f"<figcaption>{_inline(block.caption)} {_csv_link(block)}</figcaption>"
                f"{numbers}</figure>"
            )
        case Drawing():
            return (
                f'<figure class="drawing">{_heading(block.title)}{block.svg}'
                f"<figcaption>{_inline(block.caption)}</figcaption></figure>"
            )


def _heading(title: str) -> str:
    return f"<h3>{html.escape(title)}</h3>" if title else ""


def _inline(text: str) -> str:
    return _paragraphs(text).removeprefix("<p>").removesuffix("</p>")


def _csv_link(block: Table | Chart) -> str:
    encoded = base64.b64encode(table_csv(block.rows).encode()).decode()
    return (
        f'<a class="csv" download="{html.escape(block.name)}.csv" '
        f'href="data:text/csv;charset=utf-8;base64,{encoded}">{html.escape(block.name)}.csv</a>'
    )


def _table(rows: Rows, titles: Mapping[str, str], shown: Sequence[str] = ()) -> str:
    there = columns_of(rows)
    columns = [c for c in shown if c in there] or there
    if len(rows) == 1 and len(columns) >= TRANSPOSED:
        return _upright(rows[0], columns, titles)
    numeric = right_aligned(rows, columns)
    head = "".join(
        f"<th{_right(c in numeric)}>{html.escape(titles.get(c, c.replace('_', ' ')))}</th>"
        for c in columns
    )
    lines = "".join(
        "<tr>" + "".join(f"<td{_right(c in numeric)}>{_cell(r.get(c))}</td>" for c in columns)
        + "</tr>"
        for r in rows
    )  # fmt: skip
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
    )


def _upright(row: Mapping[str, Any], columns: Sequence[str], titles: Mapping[str, str]) -> str:
    """A single row as lines of name and value."""
    lines = "".join(
        f'<tr><th scope="row">{html.escape(titles.get(c, c.replace("_", " ")))}</th>'
        f"<td>{_cell(row.get(c))}</td></tr>"
        for c in columns
    )
    return f'<div class="scroll upright"><table><tbody>{lines}</tbody></table></div>'


def _right(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _cell(value: Any) -> str:
    return html.escape(cell_text(value))


POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)
