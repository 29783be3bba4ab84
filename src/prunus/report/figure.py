"""One way to draw theory (solid), bound (dashed) and measurement (points with a band)."""

import os
from pathlib import Path
from typing import Any

from prunus.files import Rows, write_bytes, write_text
from prunus.report.plain import plain_json, table_csv

__all__ = ["PALETTE", "beside", "figure", "require", "save_figure"]

# Okabe and Ito (2008): told apart with any colour vision, and ordered by lightness in grey.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"]
KINDS = ("theory", "bound", "measured")


def require(module: str, extra: str) -> Any:
    """Import `module`, or say in one line which extra brings it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(
            f"{module} is not installed; it comes with an extra: pip install 'prunus[{extra}]'."
        ) from None


def figure(
    records: Rows,
    *,
    x: str,
    y: str,
    x_title: str,
    y_title: str,
    series: str = "series",
    title: str = "",
    x_scale: str = "linear",
    y_scale: str = "linear",
    facet: str | None = None,
    columns: int = 2,
    width: int = 360,
    height: int = 260,
) -> Any:
    """A layered chart of tidy records.

    Each record has the fields `x`, `y`, `series` and `kind`: "theory" is drawn as a solid line,
    "bound" as a dashed line, "measured" as points; a measured record with `low` and `high` adds a
    band over seeds. `facet` names a field that splits the chart into panels.

    Returns:
        a Vega-Altair chart (`altair.Chart`-like), ready for `save_figure` or a page.

    Raises:
        ValueError: no records, or a `kind` that is none of the three.
        ImportError: the extra `report` is not installed.
    """
    alt = require("altair", "report")
    if not records:
        raise ValueError("`records` must hold at least one record to draw, got none.")
    bad = {str(r["kind"]) for r in records} - set(KINDS)
    if bad:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {', '.join(sorted(bad))}.")
    names = list(dict.fromkeys(str(r[series]) for r in records))
    colour = alt.Color(
        f"{series}:N",
        title=None,
        scale=alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in range(len(names))]),
        legend=alt.Legend(orient="bottom", columns=columns * 2, labelLimit=320, symbolOpacity=1),
    )
    level = {"zero": False} if x_scale == "linear" else {}  # a logarithm has none
    at = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(type=x_scale, nice=False, **level))
    level = {"zero": False} if y_scale == "linear" else {}
    up = alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(type=y_scale, **level))
    data = alt.Data(values=[dict(r) for r in records])
    base = alt.Chart(data)

    def of(kind: str) -> Any:
        return base.transform_filter(alt.datum.kind == kind)

    tips = [alt.Tooltip(f"{series}:N"), alt.Tooltip(f"{x}:Q"), alt.Tooltip(f"{y}:Q", format=".4g")]
    there = {str(r["kind"]) for r in records}  # a layer without data has no extent, which warns
    layers = []
    if any("low" in r and "high" in r for r in records if r["kind"] == "measured"):
        band = of("measured").mark_area(opacity=0.18)
        layers.append(band.encode(x=at, y=alt.Y("low:Q", title=y_title), y2="high:Q", color=colour))
    marks = {
        "theory": of("theory").mark_line(strokeWidth=2),
        "bound": of("bound").mark_line(strokeWidth=2, strokeDash=[6, 4]),
        "measured": of("measured").mark_point(filled=True, size=45),
    }
    for kind, mark in marks.items():
        if kind in there:
            layers.append(mark.encode(x=at, y=up, color=colour, tooltip=tips))
    chart = alt.layer(*layers).properties(width=width, height=height)
    if facet is not None:
        chart = chart.facet(facet=alt.Facet(f"{facet}:N", title=None), columns=columns)
    return chart.properties(title=title) if title else chart


def save_figure(chart: Any, stem: str | os.PathLike[str], records: Rows) -> list[Path]:
    """Write `stem`.svg, .png, and the numbers behind them as .csv and .json; return the paths.

    Needs no browser and no network. Raises ImportError without the extra `report`.
    """
    converter = require("vl_convert", "report")
    spec = plain_json(chart.to_dict())
    return [
        write_text(beside(stem, ".svg"), converter.vegalite_to_svg(spec)),
        write_bytes(beside(stem, ".png"), converter.vegalite_to_png(spec, scale=2)),
        write_text(beside(stem, ".csv"), table_csv(records)),
        write_text(beside(stem, ".json"), plain_json([dict(r) for r in records], indent=1) + "\n"),
    ]


def beside(stem: str | os.PathLike[str], ending: str) -> Path:
    """The file of this ending: `out/gap` and `-table.json` give `out/gap-table.json`.

    Raises:
        ValueError: the stem is a folder and names no file.
    """
    base = Path(stem)
    if not base.name or os.fspath(stem).endswith(os.sep):
        raise ValueError(
            f"A stem of file names is needed, such as out/gap, got {os.fspath(stem)!r}, a folder."
        )
    return base.with_name(base.name + ending)
