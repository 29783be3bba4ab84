"""Charts of tidy records: error against density, density by layer, latency."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.figure import PALETTE, require

__all__ = ["bars", "curves", "filling", "intervals", "layer_map", "summarise"]

Rows = Sequence[Mapping[str, Any]]
# Where eight colours do not reach: Tol (2021), muted.
COLOURS = [*PALETTE, "#882255", "#117733", "#999933", "#332288", "#AA4499", "#88CCEE"]


def summarise(records: Rows, by: Sequence[str], value: str) -> list[dict[str, Any]]:
    """One row per combination of the fields `by`, in order of appearance.

    Returns:
        the fields `by`, then `mean`, `low` and `high` (the smallest and largest) of `value` and
        `seeds`, how many records were put together; records whose value is None are left out.
    """
    places: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        if record.get(value) is not None:
            places.setdefault(tuple(record.get(k) for k in by), []).append(float(record[value]))
    return [
        {
            **dict(zip(by, key, strict=True)),
            "mean": math.fsum(values) / len(values),
            "low": min(values),
            "high": max(values),
            "seeds": len(values),
        }
        for key, values in places.items()
    ]


def curves(
    rows: Rows,
    *,
    x: str,
    x_title: str,
    y_title: str,
    series: str = "method",
    style: str = "compensation",
    styles: Sequence[str] | None = None,
    baseline: float | None = None,
    baseline_label: str = "dense",
    height: int = 320,
) -> Any:
    """Means over seeds as points on thin lines, a band from the lowest to the highest seed.

    Args:
        rows: from `summarise`, with the fields `x`, `series`, `style`, mean, low and high.
        x: field on the horizontal axis, drawn on a logarithmic scale.
        x_title: quantity and unit.
        y_title: quantity and unit; the scale is logarithmic where all values are positive.
        series: field that chooses the colour; a click in the legend singles one out.
        style: field with at most two values, between which buttons choose.
        styles: these values; the last is drawn solid with filled points, one before it dotted with
            open ones. In order of appearance where None.
        baseline: a level to compare with.
        baseline_label: what that level is.
        height: in pixels; the width follows the page.

    Raises:
        ValueError: no rows, or more than two values of `style`.
        ImportError: the extra `report` is not installed.
    """
    alt = require("altair", "report")
    if not rows:
        raise ValueError("`rows` must hold at least one row to draw, got none.")
    names = list(dict.fromkeys(str(r[series]) for r in rows))
    present = list(dict.fromkeys(str(r[style]) for r in rows))
    styles = present if styles is None else list(styles)
    if len(styles) > 2 or not set(present) <= set(styles):
        raise ValueError(
            f"`{style}` must take at most two values, those of `styles`, got {', '.join(present)}."
        )
    levels = [float(r["low"]) for r in rows] + ([] if baseline is None else [baseline])
    log = alt.Scale(type="log", nice=False, padding=8)
    y_scale = log if min(levels) > 0 else alt.Scale(zero=False, padding=8)
    positions = sorted({float(r[x]) for r in rows})
    if len(positions) < 12:
        axis = alt.Axis(values=positions, format="~g", labelOverlap=True)
    else:
        axis = alt.Axis(format="~s", tickCount=6, labelOverlap=True)
    at = alt.X(f"{x}:Q", title=x_title, axis=axis, scale=log)
    up = alt.Y("mean:Q", title=y_title, scale=y_scale, axis=alt.Axis(format="~g", tickCount=6))
    dashes = [[2, 3], [1, 0]]  # dotted, solid
    palette = alt.Scale(domain=names, range=[COLOURS[i % len(COLOURS)] for i in range(len(names))])
    colour = alt.Color(
        f"{series}:N",
        title=None,
        scale=palette,
        legend=alt.Legend(
            orient="bottom", columns=2, labelLimit=130, symbolType="circle", symbolOpacity=1
        ),
    )
    dash = alt.StrokeDash(
        f"{style}:N", scale=alt.Scale(domain=styles, range=dashes[-len(styles) :]), legend=None
    )
    single = alt.selection_point(name="single", fields=[series], bind="legend")
    shown = alt.param(
        name="shown",
        value="both",
        bind=alt.binding_radio(options=["both", *styles], name="show "),
    )
    faint = alt.when(single).then(alt.value(1)).otherwise(alt.value(0.08))
    tips = [
        alt.Tooltip(f"{series}:N", title="method"),
        alt.Tooltip(f"{style}:N"),
        alt.Tooltip(f"{x}:Q", format=".4~g"),
        alt.Tooltip("mean:Q", format=".4~g", title="mean"),
        alt.Tooltip("low:Q", format=".4~g", title="lowest"),
        alt.Tooltip("high:Q", format=".4~g", title="highest"),
        alt.Tooltip("seeds:Q"),
    ]
    base = alt.Chart(alt.Data(values=[dict(r) for r in rows]))
    if len(present) > 1:
        base = base.transform_filter(f"shown == 'both' || datum['{style}'] == shown")
    detail = [f"{series}:N", f"{style}:N"]
    band = base.mark_area().encode(
        x=at,
        y=alt.Y("low:Q", title=y_title, scale=y_scale),
        y2="high:Q",
        color=colour,
        detail=detail,
        opacity=alt.when(single).then(alt.value(0.13)).otherwise(alt.value(0.02)),
    )
    line = base.mark_line(strokeWidth=1.4).encode(
        x=at, y=up, color=colour, strokeDash=dash, opacity=faint
    )
    layers = [band, line]
    for i, name in enumerate(styles):
        mark = {"filled": i == len(styles) - 1, "size": 38, "strokeWidth": 1.6}
        points = base.transform_filter(f"datum['{style}'] == '{name}'").mark_point(**mark)
        layers.append(points.encode(x=at, y=up, color=colour, opacity=faint, tooltip=tips))
    if baseline is not None:
        level = alt.Chart(alt.Data(values=[{"level": baseline, "label": baseline_label}]))
        layers += [
            level.mark_rule(strokeWidth=1, color="#808890").encode(
                y=alt.Y("level:Q", title=y_title)
            ),
            level.mark_text(align="left", baseline="bottom", dx=2, dy=-2, color="#808890").encode(
                x=alt.value(0), y=alt.Y("level:Q", title=y_title), text="label:N"
            ),
        ]
    layers[0] = layers[0].add_params(single)
    if len(present) > 1:
        layers[0] = layers[0].add_params(shown)
    return filling(alt.layer(*layers), height)


def layer_map(
    rows: Rows,
    *,
    layer: str = "layer",
    method: str = "method",
    choice: str = "density",
    value: str = "layer_density",
) -> Any:
    """The density of every layer (columns) under every method (rows), one target at a time.

    Args:
        rows: with the four named fields.
        layer: field of the columns, in order of appearance.
        method: field of the rows, in order of appearance.
        choice: field of the target density; a menu chooses among its values.
        value: kept / total of the layer.
    """
    alt = require("altair", "report")
    if not rows:
        raise ValueError("`rows` must hold at least one row to draw, got none.")
    layers = list(dict.fromkeys(str(r[layer]) for r in rows))
    methods = list(dict.fromkeys(str(r[method]) for r in rows))
    targets = sorted({float(r[choice]) for r in rows}, reverse=True)
    middle = targets[len(targets) // 2]
    target = alt.param(
        name="target",
        value=middle,
        bind=alt.binding_select(options=targets, name="density asked for "),
    )
    base = (
        alt.Chart(alt.Data(values=[dict(r) for r in rows]))
        .transform_filter(f"datum['{choice}'] == target")
        .encode(
            x=alt.X(
                f"{layer}:N",
                sort=layers,
                title=None,
                axis=alt.Axis(orient="top", labelAngle=-35 if len(layers) > 6 else 0),
            ),
            y=alt.Y(f"{method}:N", sort=methods, title=None, axis=alt.Axis(labelLimit=140)),
        )
    )
    # A power scale spreads the small densities, where methods differ most.
    shade = alt.Color(
        f"{value}:Q",
        title="density of the layer",
        scale=alt.Scale(type="pow", exponent=0.7, domain=[0, 1], range=["#E8F1F8", "#0B3C5D"]),
        legend=alt.Legend(orient="bottom", format=".0%", gradientLength=160, tickCount=4),
    )
    cells = base.mark_rect(stroke="#808890", strokeWidth=0.3).encode(
        color=shade,
        tooltip=[
            alt.Tooltip(f"{method}:N"),
            alt.Tooltip(f"{layer}:N"),
            alt.Tooltip(f"{value}:Q", format=".2%", title="density"),
        ],
    )
    words = base.mark_text(fontSize=11).encode(
        text=alt.Text(f"{value}:Q", format=".0%"),
        color=alt.condition(f"datum['{value}'] > 0.4", alt.value("#FFFFFF"), alt.value("#123047")),
    )
    chart = alt.layer(cells.add_params(target), words if len(layers) <= 12 else cells)
    return filling(chart, 24 * len(methods) + 4)


def intervals(
    rows: Rows,
    *,
    x_title: str,
    label: str = "method",
    series: str = "density",
    reference: float = 1.0,
) -> Any:
    """A point with its interval per row, grouped by `label`; a rule marks `reference`.

    Args:
        rows: with the fields `label`, `series`, value, low and high.
        x_title: quantity and unit of the values.
        label: field of the lines.
        series: field that chooses the colour.
        reference: the value that means no change.
    """
    alt = require("altair", "report")
    if not rows:
        raise ValueError("`rows` must hold at least one row to draw, got none.")
    names = list(dict.fromkeys(str(r[label]) for r in rows))
    kinds = list(dict.fromkeys(str(r[series]) for r in rows))
    data = [{**r, series: str(r[series])} for r in rows]
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y(f"{label}:N", sort=names, title=None, axis=alt.Axis(labelLimit=140)),
        yOffset=alt.YOffset(f"{series}:N", sort=kinds),
        color=alt.Color(
            f"{series}:N",
            title=series,
            scale=alt.Scale(domain=kinds, range=COLOURS[: len(kinds)]),
            legend=alt.Legend(orient="bottom", columns=5),
        ),
        tooltip=[
            alt.Tooltip(f"{label}:N"),
            alt.Tooltip(f"{series}:N"),
            alt.Tooltip("value:Q", format=".3~g"),
            alt.Tooltip("low:Q", format=".3~g"),
            alt.Tooltip("high:Q", format=".3~g"),
        ],
    )
    scale = alt.Scale(type="log", nice=False, padding=10)
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title=x_title, scale=scale, axis=alt.Axis(format="~g", tickCount=6)),
        x2="high:Q",
    )
    points = base.mark_point(filled=True, size=40).encode(x=alt.X("value:Q", title=x_title))
    rule = (
        alt.Chart(alt.Data(values=[{"at": reference}]))
        .mark_rule(strokeWidth=1, color="#808890")
        .encode(x=alt.X("at:Q", title=x_title))
    )
    return filling(alt.layer(rule, bars, points), max(120, 15 * len(names) * len(kinds)))


def bars(
    rows: Rows,
    *,
    label: str,
    value: str,
    x_title: str,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A horizontal bar per row, in the order given.

    Args:
        rows: with the fields `label` and `value`.
        label: field that names the bars.
        value: field that is their length.
        x_title: quantity and unit.
        low: where the axis begins; 0 where None.
        high: where it ends; at the longest bar where None.
    """
    alt = require("altair", "report")
    if not rows:
        raise ValueError("`rows` must hold at least one row to draw, got none.")
    names = [str(r[label]) for r in rows]
    scale = alt.Scale(zero=True) if high is None else alt.Scale(domain=[low or 0, high])
    chart = (
        alt.Chart(alt.Data(values=[dict(r) for r in rows]))
        .mark_bar(color=PALETTE[0], height={"band": 0.7})
        .encode(
            x=alt.X(f"{value}:Q", title=x_title, scale=scale, axis=alt.Axis(tickCount=5)),
            y=alt.Y(f"{label}:N", sort=names, title=None, axis=alt.Axis(labelLimit=160)),
            tooltip=[alt.Tooltip(f"{label}:N"), alt.Tooltip(f"{value}:Q", format=".4~g")],
        )
    )
    return filling(chart, 24 * len(names) + 4)


def filling(chart: Any, height: int) -> Any:
    """The chart as wide as its place on the page, with names that do not count up."""
    alt = require("altair", "report")
    chart = chart.properties(
        width="container",
        height=height,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding", resize=True),
    )
    spec: dict[str, Any] = chart.to_dict()
    return _renamed(spec)


def _renamed(spec: dict[str, Any]) -> dict[str, Any]:
    """Altair numbers views across a session; numbered within the chart, equal charts are equal."""
    names: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: names.setdefault(value, f"view_{len(names)}")
                if key == "name" and isinstance(value, str) and value.startswith("view_")
                else [names.setdefault(v, f"view_{len(names)}") for v in value]
                if key == "views" and isinstance(value, list)
                else walk(value)
                for key, value in node.items()
            }
        return [walk(v) for v in node] if isinstance(node, list) else node

    renamed: dict[str, Any] = walk(spec)
    return renamed
