"""Maps over two quantities side by side, with curves drawn over them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from prunus.files import Row, Rows
from prunus.report.figure import require

__all__ = ["cells", "heat_map"]

LINES = ["#D55E00", "#000000", "#CC79A7", "#FF2D00", "#56B4E9", "#E69F00"]  # seen on viridis
DASHES = {"theory": [1, 0], "bound": [6, 4], "order": [2, 3]}


def _edges(values: Sequence[float], log: bool) -> list[tuple[float, float]]:
    """The interval of each value between the midpoints to its neighbours."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    at = [math.log(values[i]) if log else values[i] for i in order]
    width = (at[-1] - at[0]) / max(len(at) - 1, 1) or 1.0
    middle = [(a + b) / 2 for a, b in itertools.pairwise(at)]
    bounds = [at[0] - width / 2, *middle, at[-1] + width / 2]
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(values)
    for place, i in enumerate(order):
        low, high = bounds[place], bounds[place + 1]
        found[i] = (math.exp(low), math.exp(high)) if log else (low, high)
    return found


def cells(
    panel: str,
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    valid: Sequence[Sequence[bool]] | None = None,
    x_log: bool = False,
    y_log: bool = False,
) -> list[Row]:
    """One tidy record per cell, rows of `values` along y; ready for `heat_map`."""
    across, up = _edges(x, x_log), _edges(y, y_log)
    return [
        {
            "panel": panel,
            "x": x[j],
            "y": y[i],
            "value": values[i][j],
            "valid": True if valid is None else bool(valid[i][j]),
            "x_low": across[j][0],
            "x_high": across[j][1],
            "y_low": up[i][0],
            "y_high": up[i][1],
        }
        for i in range(len(y))
        for j in range(len(x))
    ]


def heat_map(
    records: Rows,
    curves: Rows,
    *,
    x_title: str,
    y_title: str,
    value_title: str,
    domain: tuple[float, float],
    x_log: bool = False,
    y_log: bool = False,
    title: str = "",
    width: int = 320,
    height: int = 260,
) -> Any:
    """Panels of coloured cells on one scale of colour, with curves over them.

    Args:
        records: from `cells`; cells that are not valid are drawn pale with a cross.
        curves: records with `x`, `y`, `series` and `kind`: "theory" is drawn solid, "bound"
            dashed, "order" (an order of magnitude only) dotted, "points" as dots. One with a
            `panel` is drawn over that panel alone.
        x_title: quantity and unit.
        y_title: quantity and unit.
        value_title: what the colour means.
        domain: ends of the scale of colour.
        x_log: whether the axis is logarithmic.
        y_log: likewise.
        title: above all panels.
        width: of a panel, pixels.
        height: of a panel, pixels.

    Raises:
        ValueError: no cells.
        ImportError: the extra `report` is not installed.
    """
    alt = require("altair", "report")
    if not records:
        raise ValueError("`records` must hold at least one cell to draw, got none.")
    x_domain = [min(r["x_low"] for r in records), max(r["x_high"] for r in records)]
    y_domain = [min(r["y_low"] for r in records), max(r["y_high"] for r in records)]

    def scale(log: bool, ends: list[float]) -> Any:
        return alt.Scale(type="log" if log else "linear", domain=ends, nice=False, zero=False)

    across = alt.X("x_low:Q", title=x_title, scale=scale(x_log, x_domain))
    up = alt.Y("y_low:Q", title=y_title, scale=scale(y_log, y_domain))
    colour = alt.Color(
        "value:Q", title=value_title, scale=alt.Scale(scheme="viridis", domain=list(domain))
    )
    names = list(dict.fromkeys(str(c["series"]) for c in curves))
    hue = alt.Stroke(
        "series:N",
        title=None,
        scale=alt.Scale(domain=names, range=[LINES[i % len(LINES)] for i in range(len(names))]),
        legend=alt.Legend(orient="bottom", columns=2, labelLimit=360),
    )
    lines = [dict(c) for c in curves if y_domain[0] <= c["y"] <= y_domain[1]]
    lines = [c for c in lines if x_domain[0] <= c["x"] <= x_domain[1]]
    panels = []
    for panel in dict.fromkeys(str(r["panel"]) for r in records):
        own = [dict(r) for r in records if r["panel"] == panel]
        base = alt.Chart(alt.Data(values=own))
        tips = [
            alt.Tooltip("x:Q", title=x_title, format=".4g"),
            alt.Tooltip("y:Q", title=y_title, format=".4g"),
            alt.Tooltip("value:Q", title=value_title, format=".4f"),
        ]
        faded = alt.condition(alt.datum.valid, alt.value(1.0), alt.value(0.45))
        layers = [
            base.mark_rect().encode(
                x=across, x2="x_high:Q", y=up, y2="y_high:Q", color=colour, opacity=faded,
                tooltip=tips,
            )
        ]  # fmt: skip
        if not all(r["valid"] for r in own):
            layers.append(
                base.transform_filter("!datum.valid")
                .mark_point(shape="cross", size=14, color="black", opacity=0.5)
                .encode(x=alt.X("x:Q", title=x_title), y=alt.Y("y:Q", title=y_title))
            )
        mine = [line for line in lines if line.get("panel", panel) == panel]
        over = alt.Chart(alt.Data(values=mine))
        for kind, dash in DASHES.items():
            layers.append(
                over.transform_filter(alt.datum.kind == kind)
                .mark_line(strokeWidth=2.5, strokeDash=dash)
                .encode(
                    x=alt.X("x:Q", title=x_title),
                    y=alt.Y("y:Q", title=y_title),
                    stroke=hue,
                    order=alt.Order("y:Q"),
                )
            )
        layers.append(
            over.transform_filter(alt.datum.kind == "points")
            .mark_point(size=28, strokeWidth=2)
            .encode(x=alt.X("x:Q", title=x_title), y=alt.Y("y:Q", title=y_title), stroke=hue)
        )
        panels.append(alt.layer(*layers).properties(width=width, height=height, title=panel))
    chart = alt.hconcat(*panels)
    return chart.properties(title=title) if title else chart
