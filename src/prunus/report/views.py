"""Notebook views: the headline, the charts as still pictures, the tables."""

import json
from typing import Any

from prunus.notebook import view
from prunus.report.charts import bars, summarise
from prunus.report.curves import curves, leaders
from prunus.report.headline import higher_is_better, named_score
from prunus.report.layers import error_text
from prunus.report.plain import plain_json
from prunus.report.sensitivity import scan_chart, scan_headline
from prunus.report.summary import layer_rows, metric_rows, shown_costs

__all__ = ["comparison_html", "pruned_html", "scan_html"]

WIDE = 460  # pixels of a chart


def pruned_html(pruned: Any) -> str:
    """A `Pruned`: its headline, what each layer keeps, costs, scores, layers."""
    layers = [
        {
            **{k: row[k] for k in ("layer", "shape", "kept", "density")},
            "error": error_text(row["error"], row["relative"]),
        }
        for row in layer_rows(pruned)
    ]
    layers += [{"layer": name, "density": "dense"} for name in pruned.not_pruned]
    shares = [{"layer": r["layer"], "density": r["density"]} for r in layer_rows(pruned)]
    picture = still(
        lambda: bars(
            shares, label="layer", value="density", x_title="density (kept / total)", low=0, high=1
        )
    )
    tables = [shown_costs(pruned), metric_rows(pruned.metrics) if pruned.metrics else [], layers]
    return view([pruned.headline(), *pruned.notes], tables, pictures=[picture])


def comparison_html(comparison: Any) -> str:
    """A `Comparison`: its headline, its curves, the means."""
    rows = [
        {"method": r["recipe"], "compensation": comparison.metric, "density": r["density"],
         "score": r[comparison.metric]}
        for r in comparison.records
        if isinstance(r["density"], int | float)
    ]  # fmt: skip
    dense = comparison.dense[comparison.metric]

    def chart() -> Any:
        data = summarise(rows, ["method", "compensation", "density"], "score")
        higher = higher_is_better(comparison.metric, dense, [r["score"] for r in rows])
        return curves(
            data,
            x="density",
            x_title="density; less is left to the right",
            y_title=named_score(comparison.metric),
            best=leaders(data, "density", higher=higher),
            baseline=dense,
        )

    means = [
        {
            "recipe": row["recipe"],
            "density": str(row["density"]),
            named_score(comparison.metric): row[comparison.metric],
            "standard error": row["standard_error"],
            "seeds": row["seeds"],
        }
        for row in comparison.table()
    ]
    return view([comparison.headline()], [means], pictures=[still(chart) if rows else ""])


def scan_html(scan: Any) -> str:
    """A `SensitivityScan`: its headline, its curves, its table."""
    return view([scan_headline(scan)], [scan.table()], pictures=[still(lambda: scan_chart(scan))])


def still(chart: Any) -> str:
    """A chart as SVG without script; nothing where the extra `report` is not installed.

    Args:
        chart: makes the specification; called here, so that a missing library costs no view.
    """
    try:
        import vl_convert

        spec = chart()
    except ImportError:
        return ""
    plain = json.loads(plain_json(spec))
    plain.update(width=WIDE, autosize={"type": "pad"})
    svg: str = vl_convert.vegalite_to_svg(plain)
    return svg
