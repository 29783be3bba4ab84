"""The charts of the benchmark's page: scores, Pareto fronts, critical differences."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.files import KnownRow, Rows
from prunus.report.curves import GREY, ends, span
from prunus.report.figure import PALETTE

__all__ = ["critical_difference", "pareto_chart", "scores_chart"]

HEIGHT = 380  # pixels of a chart on the page
LEGEND = {"orient": "bottom", "columns": 3, "labelLimit": 260, "symbolOpacity": 1}
FILTER = (
    "datum.task == f_task && datum.schedule == f_schedule && "
    "(f_recipe == 'all' || datum.recipe == f_recipe) && "
    "(f_density == 'all' || toString(datum.density) == f_density)"
)


def _bound(*names: str, rows: Rows, static: bool) -> list[dict[str, Any]]:
    first = rows[0] if rows else {}
    params = []
    for name in names:
        value = {"cost": "parameters"}.get(name, first.get(name, "all"))
        if name in ("recipe", "density"):
            value = "all"
        param: dict[str, Any] = {"name": f"f_{name}", "value": value}
        if not static:
            param["bind"] = {"element": f"#filter-{name}", "event": "input"}
        params.append(param)
    return params


def _colour(rows: Rows, best: Sequence[str] = ()) -> dict[str, Any]:
    """A colour for every recipe; with `best`, for these alone, and grey for the others."""
    names = sorted({str(r["recipe"]) for r in rows})
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    legend: dict[str, Any] = LEGEND
    if best:
        names = [*best, *(n for n in names if n not in best)]
        colours = [*PALETTE[: len(best)], *[GREY] * (len(names) - len(best))]
        legend = {**LEGEND, "values": list(best), "columns": 2, "labelLimit": 130}
    return {
        "field": "recipe",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": colours},
        "legend": legend,
    }


def _shape(rows: Rows, best: Sequence[str] = ()) -> dict[str, Any]:
    """Colours repeat after eight recipes; shapes tell those apart."""
    if best:
        return {"value": "circle"}
    names = sorted({str(r["recipe"]) for r in rows})
    shapes = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
    chosen = [shapes[i // len(PALETTE) % len(shapes)] for i in range(len(names))]
    scale = {"domain": names, "range": chosen}
    return {"field": "recipe", "type": "nominal", "title": None, "legend": LEGEND, "scale": scale}


def _spec(rows: Rows, layers: list[dict[str, Any]], static: bool) -> dict[str, Any]:
    single = {"name": "single", "select": {"type": "point", "fields": ["recipe"]}, "bind": "legend"}
    layers[0]["params"] = [single]
    size: dict[str, Any] = {"width": 560, "height": 360}
    if not static:
        size = {"width": "container", "height": HEIGHT,
                "autosize": {"type": "fit-x", "contains": "padding", "resize": True}}  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": list(rows)},
        "params": _bound("task", "schedule", "recipe", "density", "cost", rows=rows, static=static),
        "transform": [{"filter": FILTER}],
        "layer": layers,
        **size,
    }


def _faint(rest: float) -> dict[str, Any]:
    return {"condition": {"param": "single", "value": 1}, "value": rest}


def _tips(*fields: str) -> list[dict[str, Any]]:
    number = {"type": "quantitative", "format": ".4~g"}
    words = {"type": "nominal"}
    return [{"field": f, **(words if f == "recipe" else number)} for f in fields]


def _points(
    rows: Rows,
    x: KnownRow,
    y: KnownRow,
    which: str,
    filled: bool,
    tips: Sequence[str],
    before: Rows = (),
    best: Sequence[str] = (),
) -> dict[str, Any]:
    """The points for which the expression `which` holds."""
    return {
        "transform": [*before, {"filter": which}],
        "mark": {"type": "point", "filled": filled, "size": 42},
        "encoding": {
            "x": x,
            "y": y,
            "color": _colour(rows, best),
            "shape": _shape(rows, best),
            "opacity": _faint(0.08),
            "tooltip": _tips("recipe", "at", "mean", *tips, "seeds"),
        },
    }


def scores_chart(
    rows: Rows, words: str, static: bool = False, best: Sequence[str] = ()
) -> dict[str, Any]:
    """Scores against density with intervals; hollow points do not beat every null baseline.

    With `best`, these recipes are in colour and named at their curves' ends, the others grey.
    """
    scale: dict[str, Any] = {"type": "log", "nice": False, "padding": 10}
    title: str | list[str] = "density"
    if best:  # less is left to the right, where curves part and end with their names
        low, high = min(r["at"] for r in rows), max(r["at"] for r in rows)
        scale = {"type": "log", "nice": False, "reverse": True,
                 "domain": [low * (low / high) ** 0.35, high * 1.05]}  # fmt: skip
        title = ["density", "less is left to the right"]
    x = {"field": "at", "type": "quantitative", "title": title, "scale": scale,
         "axis": {"format": ".3~g", "values": sorted({r["at"] for r in rows})[:14],
                  "labelOverlap": True}}  # fmt: skip
    linear = any(r["mean"] <= 0 for r in rows)
    up: dict[str, Any] = {"type": "linear", "zero": False} if linear else {"type": "log"}
    spans = _spans(rows, log=up["type"] == "log") if best else {}
    if best:  # one span for each place, by which the names at the curves' ends are kept apart
        low, high = (f"spans[f_task + ' / ' + f_schedule][{end}]" for end in (0, 1))
        up |= {"nice": False, "domainMin": {"expr": low}, "domainMax": {"expr": high}}
    y = {"field": "mean", "type": "quantitative", "title": words, "scale": up,
         "axis": {"format": "~g", "tickCount": 6}}  # fmt: skip
    colour = _colour(rows, best)
    line = {
        "mark": {"type": "line", "strokeWidth": 1.4},
        "encoding": {"x": x, "y": y, "color": colour, "opacity": _faint(0.08)},
    }
    bars = {
        "transform": [{"filter": "datum.low != null && datum.low > 0"}],
        "mark": {"type": "rule", "strokeWidth": 1.2},
        "encoding": {
            "x": x,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "color": colour,
            "opacity": _faint(0.05),
        },
    }
    points = [
        _points(rows, x, y, f"datum.beats == {json.dumps(filled)}", filled, ("low", "high"),
                best=best)
        for filled in (True, False)
    ]  # fmt: skip
    known = any(r["low"] is not None and r["low"] > 0 for r in rows)  # else there is no extent
    layers: list[dict[str, Any]] = [line, *([bars] if known else []), *points]
    if best and any(r["recipe"] not in best for r in rows):
        layers[:1] = _behind(line, best)
    if best:
        layers.append(_names(rows, x, y, best, spans))
    spec = _spec(rows, layers, static)
    spec["params"] = [{"name": "spans", "value": spans}, *spec["params"]]
    return spec


def _behind(line: dict[str, Any], best: Sequence[str]) -> list[dict[str, Any]]:
    """The grey lines first, the coloured ones over them."""
    chief = f"indexof({json.dumps(list(best))}, datum.recipe)"
    return [{**line, "transform": [{"filter": f"{chief} {sign} 0"}]} for sign in ("<", ">=")]


def _place(row: KnownRow) -> str:
    return f"{row['task']} / {row['schedule']}"


def _spans(rows: Rows, *, log: bool) -> dict[str, list[float]]:
    """The vertical axis of each task and schedule, from end to end."""
    found: dict[str, list[float]] = {}
    for place in dict.fromkeys(map(_place, rows)):
        own = [r[k] for r in rows if _place(r) == place for k in ("mean", "low", "high")]
        known = [float(v) for v in own if v is not None and (v > 0 or not log)]
        low, high = span(known, None)
        found[place] = [low if log else min(low, 0.0), high]
    return found


def _names(
    rows: Rows,
    x: KnownRow,
    y: KnownRow,
    best: Sequence[str],
    spans: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Each name beside the end of its curve, moved up or down from its neighbours."""
    labels = []
    for place, (low, high) in spans.items():
        own = [{**r, "place": place} for r in rows if _place(r) == place]
        if own:
            about = {"task": own[0]["task"], "schedule": own[0]["schedule"]}
            placed = ends(own, "at", "recipe", "place", [place], best, (low, high), HEIGHT)
            labels += [{**label, **about} for label in placed]
    shown = (
        "datum.task == f_task && datum.schedule == f_schedule && f_density == 'all' && "
        "(f_recipe == 'all' || datum.recipe == f_recipe)"
    )
    return {
        "data": {"values": labels},
        "transform": [{"filter": shown}],
        "mark": {"type": "text", "align": "left", "dx": 9, "fontSize": 11},
        "encoding": {"x": x, "y": {**y, "field": "label_at"}, "text": {"field": "recipe"},
                     "opacity": _faint(0.15)},
    }  # fmt: skip


def pareto_chart(rows: Rows, words: str, best: Sequence[str] = ()) -> dict[str, Any]:
    """Scores against the chosen cost; filled points are on the front, which a line joins."""
    x = {"field": "cost", "type": "quantitative", "title": "cost after pruning",
         "scale": {"type": "log", "nice": False, "padding": 10},
         "axis": {"format": "~s", "tickCount": 6}}  # fmt: skip
    scale = {"zero": False} if any(r["mean"] <= 0 for r in rows) else {"type": "log"}
    y = {"field": "mean", "type": "quantitative", "title": words, "scale": scale,
         "axis": {"format": "~g", "tickCount": 6}}  # fmt: skip
    cost = [
        {"calculate": "datum[f_cost]", "as": "cost"},
        {"calculate": "datum['front_' + f_cost]", "as": "front"},
        {"filter": "isValid(datum.cost)"},
    ]
    front = {
        "transform": [*cost, {"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": "#808890",
                 "strokeWidth": 1.2},
        "encoding": {"x": x, "y": y},
    }  # fmt: skip
    points = [
        _points(rows, x, y, "datum.front" if filled else "!datum.front", filled, ("cost",), cost,
                best)
        for filled in (True, False)
    ]  # fmt: skip
    return _spec(rows, [front, *points], False)


def critical_difference(ranks: KnownRow) -> str:
    """A line per recipe, best on top, a dot at its rank; bars join those not told apart."""
    rows, cliques = ranks["recipes"], ranks["cliques"]
    left, right, top, step = 250.0, 720.0, 34.0, 20.0
    place = {row["recipe"]: i for i, row in enumerate(rows)}
    wide = (right - left - 90) / max(1, len(rows) - 1)

    def x(rank: float) -> float:
        return left + (rank - 1) * wide

    parts = [
        f'<line x1="{x(rank):.1f}" x2="{x(rank):.1f}" y1="{top - 8:.0f}" '
        f'y2="{top + step * len(rows):.0f}" stroke="currentColor" stroke-opacity=".12"/>'
        f'<text x="{x(rank):.1f}" y="{top - 14:.0f}" text-anchor="middle">{rank}</text>'
        for rank in range(1, len(rows) + 1)
    ]
    for row in rows:
        y = top + step * (place[row["recipe"]] + 0.5)
        parts.append(
            f'<text x="{left - 14:.0f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{html.escape(row['recipe'])}</text>"
            f'<circle class="unit" cx="{x(row["rank"]):.1f}" cy="{y:.1f}" r="4.5"/>'
        )
    for i, clique in enumerate(cliques):
        first, last = place[clique[0]], place[clique[-1]]
        at = right - 84 + 8 * (i % 11)
        parts.append(
            f'<line class="plus" stroke-width="3" x1="{at:.1f}" x2="{at:.1f}" '
            f'y1="{top + step * (first + 0.25):.1f}" y2="{top + step * (last + 0.75):.1f}"/>'
        )
    height = top + step * len(rows) + 8
    label = f"mean ranks of {len(rows)} recipes and {len(cliques)} groups not told apart"
    return (
        f'<svg viewBox="0 0 {right:.0f} {height:.0f}" role="img" aria-label="{label}" '
        f'font-size="13" style="max-width:46rem"><title>{label}</title>{"".join(parts)}</svg>'
    )
