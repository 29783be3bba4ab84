"""Charts of the teacher–student theory: claimed inequalities, and which method wins where."""

from typing import Any

from prunus.files import Rows
from prunus.report.figure import PALETTE, require

__all__ = ["inequality_figure", "map_figure"]


def inequality_figure(
    records: Rows, *, x: str, x_title: str, y_title: str, columns: int = 3
) -> Any:
    """Panels, one per claim, of a value (solid) and its claimed upper bound (dashed).

    Each record has `x`, `claim` (the panel's title), `value`, `bound` and `holds`; the value's
    points are filled circles where the claim holds and crosses where it fails.

    Returns:
        a Vega-Altair chart for `prunus.report.figure.save_figure`.

    Raises:
        ValueError: no records.
        ImportError: the extra `report` is not installed.
    """
    alt = require("altair", "report")
    if not records:
        raise ValueError("`records` must hold at least one record to draw, got none.")
    base = alt.Chart(alt.Data(values=[dict(r) for r in records])).encode(
        x=alt.X(
            f"{x}:Q",
            title=x_title,
            scale=alt.Scale(zero=False, nice=False),
            axis=alt.Axis(tickMinStep=1),
        )
    )
    fold = base.transform_fold(["value", "bound"], as_=["line", "error"])
    lines = fold.mark_line(strokeWidth=2).encode(
        y=alt.Y("error:Q", title=y_title),
        color=alt.Color(
            "line:N",
            title=None,
            scale=alt.Scale(domain=["value", "bound"], range=PALETTE[:2]),
            legend=alt.Legend(orient="bottom"),
        ),
        strokeDash=alt.StrokeDash(
            "line:N",
            title=None,
            scale=alt.Scale(domain=["value", "bound"], range=[[1, 0], [6, 4]]),
            legend=None,
        ),
    )
    marks = base.transform_calculate(state="datum.holds ? 'holds' : 'fails'").mark_point(size=70)
    marks = marks.encode(
        y=alt.Y("value:Q", title=y_title),
        shape=alt.Shape(
            "state:N",
            title=None,
            scale=alt.Scale(domain=["holds", "fails"], range=["circle", "cross"]),
            legend=alt.Legend(orient="bottom"),
        ),
        color=alt.value("#000000"),
        tooltip=[alt.Tooltip("value:Q", format=".4g"), alt.Tooltip("bound:Q", format=".4g")],
    )
    panel = alt.layer(lines, marks).properties(width=230, height=190)
    return panel.facet(facet=alt.Facet("claim:N", title=None), columns=columns).resolve_scale(
        y="independent"
    )


def map_figure(records: Rows) -> Any:
    """Cells of K against density coloured by the winning method; panels by σ and least squares.

    Each record has "K", "M", "sigma", "density", "least squares", "best", "error" and "second".
    """
    alt = require("altair", "report")
    shown = [
        {
            **r,
            "method": r["best"].replace(" (preact)", ""),
            "panel": f"M = {r['M']}, σ = {r['sigma']:g}, least squares {r['least squares']}",
            "from": r["density"] - 0.5 / r["K"],
            "to": r["density"] + 0.5 / r["K"],
        }
        for r in records
    ]
    ordered = sorted(shown, key=lambda r: (r["M"], r["least squares"] != "none", r["sigma"]))
    panels = list(dict.fromkeys(r["panel"] for r in ordered))
    names = sorted({r["method"] for r in shown})
    scale = alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in range(len(names))])
    chart = alt.Chart(alt.Data(values=shown)).mark_rect(stroke="white")
    encoded = chart.encode(
        x=alt.X("from:Q", title="density k/K", scale=alt.Scale(domain=[0, 1], nice=False)),
        x2="to:Q",
        y=alt.Y("K:O", title="students K", sort="descending"),
        color=alt.Color(
            "method:N",
            title=None,
            scale=scale,
            legend=alt.Legend(orient="bottom", columns=3, labelLimit=320),
        ),
        tooltip=["best:N", alt.Tooltip("error:Q", format=".3g"), "second:N"],
    ).properties(width=230, height=alt.Step(26))
    columns = max(1, len({r["sigma"] for r in records}))
    return encoded.facet(
        facet=alt.Facet("panel:N", title=None, sort=panels),
        columns=columns,
    )
