"""Scores against what is left: the best few in colour with their names, all others in grey."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.files import Row, Rows
from prunus.means import as_loss, mean
from prunus.report.charts import COLOURS, filling
from prunus.report.figure import require

__all__ = ["FEW", "curves", "ends", "leaders", "span"]

FEW = 5  # more colours than these cannot be told apart at a glance
MANY = 8  # up to so many curves all have a colour and stand in the legend
GREY, QUIET = "#C3C9CF", "#5B6570"
APART = 14.0  # pixels between two names
INSIDE = 7.0  # and from the frame, so that none is cut
NAMES = 0.4  # of the axis, to the right of the last points, where names are written


def leaders(
    rows: Rows, x: str, *, higher: bool, series: str = "method", style: str = "compensation"
) -> list[str]:
    """The names of the few best series, by their mean rank over the positions; the best first.

    Args:
        rows: from `summarise`.
        x: field of the positions.
        higher: True where a larger mean is better.
        series: field that names the series.
        style: field of the variants; the one with most rows counts, the last of equals.
    """
    count: dict[str, int] = {}
    for row in rows:
        count[str(row[style])] = count.get(str(row[style]), 0) + 1
    chosen = max(reversed(list(count)), key=lambda name: count[name]) if count else ""
    ranks: dict[str, list[float]] = {}
    own = [r for r in rows if str(r[style]) == chosen]
    names = {str(r[series]) for r in own}
    for position in dict.fromkeys(r[x] for r in own):
        there = {str(r[series]): float(r["mean"]) for r in own if r[x] == position}
        if len(there) == len(names):  # a rank among fewer is another thing
            ordered = sorted(there, key=lambda name: as_loss(there[name], higher=higher))
            for place, name in enumerate(ordered):
                ranks.setdefault(name, []).append(place)
    if not ranks:
        means = {n: [float(r["mean"]) for r in own if str(r[series]) == n] for n in names}
        ranks = {n: [as_loss(mean(v), higher=higher)] for n, v in sorted(means.items())}
    return sorted(ranks, key=lambda name: math.fsum(ranks[name]) / len(ranks[name]))[:FEW]


def curves(
    rows: Rows,
    *,
    x: str,
    x_title: str,
    y_title: str,
    series: str = "method",
    style: str = "compensation",
    styles: Sequence[str] | None = None,
    best: Sequence[str] | None = None,
    baseline: float | None = None,
    baseline_label: str = "dense",
    height: int = 340,
) -> Any:
    """Means over seeds as points on thin lines, a band from the lowest to the highest seed.

    What is left falls to the right, where curves part and end with their names.

    Args:
        rows: from `summarise`, with the fields `x`, `series`, `style`, mean, low and high.
        x: field on the horizontal axis, drawn on a logarithmic scale that falls to the right.
        x_title: quantity and unit.
        y_title: quantity and unit; the scale is logarithmic where all values are positive.
        series: field that chooses the colour.
        style: field with at most two values, between which buttons choose; the last is shown first.
        styles: these values; the last is drawn solid with filled points, one before it dotted with
            open ones. In order of appearance where None.
        best: the series in colour, named at their ends; all others are grey, and a menu singles one
            out. All where None; a click in the legend then singles one out.
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
    chief = names if best is None or len(names) <= MANY else [n for n in names if n in best]
    few = len(chief) == len(names)
    data = [{**r, "chief": str(r[series]) in chief} for r in rows]
    reach = span([float(r[k]) for r in rows for k in ("mean", "low", "high")], baseline)
    at = _falling(alt, x, x_title, sorted({float(r[x]) for r in rows}))
    y_scale = alt.Scale(type="log" if reach[0] > 0 else "linear", domain=list(reach), nice=False)
    up = alt.Y("mean:Q", title=y_title, scale=y_scale, axis=alt.Axis(format="~g", tickCount=6))
    order = [*chief, *(n for n in names if n not in chief)]
    colours = [COLOURS[i % len(COLOURS)] if i < len(chief) else GREY for i in range(len(order))]
    colour = alt.Color(
        f"{series}:N",
        title=None,
        scale=alt.Scale(domain=order, range=colours),
        legend=alt.Legend(
            orient="bottom", columns=2, labelLimit=130, symbolType="circle", symbolOpacity=1,
            values=chief,
        ),
    )  # fmt: skip
    dash = alt.StrokeDash(
        f"{style}:N",
        scale=alt.Scale(domain=styles, range=[[2, 3], [1, 0]][-len(styles) :]),  # dotted, solid
        legend=None,
    )
    single = _singling(alt, series, names, few)
    shown = alt.param(
        name="shown",
        value=styles[-1] if styles[-1] in present else "both",
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
    every = alt.Chart(alt.Data(values=data))
    if len(present) > 1:
        every = every.transform_filter(f"shown == 'both' || datum['{style}'] == shown")
    layers = []
    for base, in_front in ((every.transform_filter("!datum.chief"), False), (every, True)):
        if not in_front and few:
            continue
        base = base if few or not in_front else base.transform_filter("datum.chief")
        if in_front:
            layers.append(
                base.mark_area().encode(
                    x=at,
                    y=alt.Y("low:Q", title=y_title, scale=y_scale),
                    y2="high:Q",
                    color=colour,
                    detail=[f"{series}:N", f"{style}:N"],
                    opacity=alt.when(single).then(alt.value(0.13)).otherwise(alt.value(0.02)),
                )
            )
        layers.append(
            base.mark_line(strokeWidth=1.6 if in_front else 1.1).encode(
                x=at, y=up, color=colour, strokeDash=dash, opacity=faint
            )
        )
        for i, name in enumerate(styles):
            mark = {"filled": i == len(styles) - 1, "size": 38 if in_front else 20,
                    "strokeWidth": 1.6}  # fmt: skip
            points = base.transform_filter(f"datum['{style}'] == '{name}'").mark_point(**mark)
            layers.append(points.encode(x=at, y=up, color=colour, opacity=faint, tooltip=tips))
    labels = ends(rows, x, series, style, styles, chief, reach, height)
    label = alt.Chart(alt.Data(values=labels)).mark_text(align="left", dx=9, fontSize=11)
    if len(present) > 1:
        label = label.transform_filter(
            f"datum['{style}'] == (shown == 'both' ? '{styles[-1]}' : shown)"
        )
    layers.append(
        label.encode(
            x=at,
            y=alt.Y("label_at:Q", title=y_title, scale=y_scale),
            text=f"{series}:N",
            opacity=alt.when(single).then(alt.value(1)).otherwise(alt.value(0.15)),
        )
    )
    if baseline is not None:
        layers += _level(alt, baseline, baseline_label, y_title, y_scale)
    layers[0] = layers[0].add_params(single)
    if len(present) > 1:
        layers[0] = layers[0].add_params(shown)
    return filling(alt.layer(*layers), height)


def span(values: Sequence[float], baseline: float | None) -> tuple[float, float]:
    """The vertical axis from end to end; logarithmic where all values are positive."""
    found = [v for v in (*values, *(() if baseline is None else (baseline,))) if math.isfinite(v)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if low > 0:  # values that differ by rounding alone have room, too
        room = (high / low) ** 0.06 if high / low > 1 + 1e-9 else 1.1
        return low / room, high * room
    room = 0.06 * (high - low) if high - low > 1e-9 * max(abs(low), abs(high)) else 1.0
    return (low if low == 0 else low - room), high + room


def _falling(alt: Any, x: str, said: str, positions: Sequence[float]) -> Any:
    """The horizontal axis, from much to little, with room for names behind the last position."""
    low, high = positions[0], positions[-1]
    reach = math.log(high / low) if high > low else 0.5
    beyond = low * math.exp(-reach * NAMES / (1 - NAMES))
    scale = alt.Scale(
        type="log", nice=False, reverse=True, domain=[beyond, high * math.exp(0.03 * reach)]
    )
    title = [part.strip() for part in said.split(";")]  # lines, for narrow pages
    values = positions if len(positions) < 12 else _thinned(positions)
    form = "~g" if high <= 1 else ".3~s"
    axis = alt.Axis(values=list(values), format=form, labelOverlap=True, grid=True)
    return alt.X(f"{x}:Q", title=title, axis=axis, scale=scale)


def _thinned(positions: Sequence[float]) -> list[float]:
    """Round numbers between the ends, about six of them."""
    low, high = math.log10(positions[0]), math.log10(positions[-1])
    steps = [low + (high - low) * i / 5 for i in range(6)]
    return sorted({float(f"{10**step:.2g}") for step in steps})


def _singling(alt: Any, series: str, names: Sequence[str], few: bool) -> Any:
    """A click in the legend where it has every name, else a menu."""
    if few:
        return alt.selection_point(name="single", fields=[series], bind="legend")
    menu = alt.binding_select(options=[None, *names], labels=["all", *names], name="single out ")
    return alt.selection_point(name="single", fields=[series], bind=menu)


def ends(
    rows: Rows,
    x: str,
    series: str,
    style: str,
    styles: Sequence[str],
    chief: Sequence[str],
    span: tuple[float, float],
    height: int,
) -> list[Row]:
    """Where each name stands: beside its curve's last point, moved up or down from its neighbours.

    The pixel is worked out from the axis, so that names keep apart at every size of the page.
    """
    log = span[0] > 0
    low, high = (math.log(span[0]), math.log(span[1])) if log else span
    found = []
    for variant in styles:
        last: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            name = str(row[series])
            kept = name in chief and row[style] == variant and math.isfinite(row["mean"])
            if kept and (name not in last or row[x] < last[name][x]):
                last[name] = row
        pixel = {}
        for name, row in last.items():
            value = math.log(row["mean"]) if log else float(row["mean"])
            pixel[name] = height * (high - value) / (high - low)
        for name, at in _kept_apart(pixel, height).items():
            value = high - at / height * (high - low)
            found.append(
                {
                    series: name,
                    style: variant,
                    x: last[name][x],
                    "label_at": math.exp(value) if log else value,
                }
            )
    return found


def _kept_apart(pixel: Mapping[str, float], height: float) -> dict[str, float]:
    """The same places with at least `APART` between any two, inside the frame, in their order."""
    names = sorted(pixel, key=lambda name: pixel[name])
    moved: list[float] = []
    for name in names:
        moved.append(max(pixel[name], moved[-1] + APART) if moved else max(INSIDE, pixel[name]))
    for i in reversed(range(len(moved))):
        limit = height - INSIDE if i == len(moved) - 1 else moved[i + 1] - APART
        moved[i] = min(moved[i], limit)
    return dict(zip(names, moved, strict=True))


def _level(alt: Any, baseline: float, label: str, y_title: str, y_scale: Any) -> list[Any]:
    """The line of the dense network, and its name at the left end."""
    level = alt.Chart(alt.Data(values=[{"level": baseline, "label": label}]))
    up = alt.Y("level:Q", title=y_title, scale=y_scale)
    named = level.mark_text(align="left", baseline="bottom", dx=2, dy=-2, color=QUIET)
    return [
        level.mark_rule(strokeWidth=1, color="#808890").encode(y=up),
        named.encode(x=alt.value(0), y=up, text="label:N"),
    ]
