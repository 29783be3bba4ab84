"""Charts of tidy records: error against density, density by layer, latency."""

from collections.abc import Sequence
from typing import Any

from prunus.files import Row, Rows
from prunus.means import highest, lowest, mean
from prunus.report.figure import PALETTE, require

__all__ = ["bars", "filling", "intervals", "layer_map", "summarise"]

# Where eight colours do not reach: Tol (2021), muted.
COLOURS = [*PALETTE, "#882255", "#117733", "#999933", "#332288", "#AA4499", "#88CCEE"]


def summarise(records: Rows, by: Sequence[str], value: str) -> list[Row]:
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
            "mean": mean(values),
            "low": lowest(values),
            "high": highest(values),
            "seeds": len(values),
        }
        for key, values in places.items()
    ]


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
        color=alt.condition(f"datum['{value}'] > 0.53", alt.value("#FFFFFF"), alt.value("#010101")),
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
    step = 24 if len(names) <= 40 else 12
    axis = alt.Axis(labelLimit=160) if step == 24 else alt.Axis(labelLimit=160, labelFontSize=9)
    chart = (
        alt.Chart(alt.Data(values=[dict(r) for r in rows]))
        .mark_bar(color=PALETTE[0], height={"band": 0.7})
        .encode(
            x=alt.X(f"{value}:Q", title=x_title, scale=scale, axis=alt.Axis(tickCount=5)),
            y=alt.Y(f"{label}:N", sort=names, title=None, axis=axis),
            tooltip=[alt.Tooltip(f"{label}:N"), alt.Tooltip(f"{value}:Q", format=".4~g")],
        )
    )
    return filling(chart, step * len(names) + 4)


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
