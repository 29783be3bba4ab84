"""Pictures for the pages: charts as still SVG, which pages and notebooks show as they are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert

from prunus.report.figure import figure

__all__ = ["Picture", "lines"]


class Picture:
    """A chart that shows itself."""

    def __init__(self, chart: Any) -> None:
        self.spec = chart if isinstance(chart, Mapping) else chart.to_dict()

    def _repr_html_(self) -> str:
        return f"<div>{vl_convert.vegalite_to_svg(json.dumps(self.spec))}</div>"


def lines(rows: Sequence[Mapping[str, Any]], **words: str) -> Picture:
    """Means as points, a line through them; rows have x, y and series."""
    points = [{**row, "kind": kind} for row in rows for kind in ("theory", "measured")]
    return Picture(figure(points, x="x", y="y", width=460, **words))
