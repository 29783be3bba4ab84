"""The page of a sensitivity scan: which layers hurt when they alone are pruned."""

import os
from pathlib import Path
from typing import Any

from prunus.files import write_text
from prunus.report.charts import summarise
from prunus.report.curves import curves, leaders
from prunus.report.footing import footing
from prunus.report.headline import is_share, named_score, shown_score
from prunus.report.page import Chart, Section, Table, Text, page

__all__ = ["scan_chart", "scan_headline", "sensitivity_page", "write_scan"]


def write_scan(scan: Any, path: str | os.PathLike[str], *, made: str | None = None) -> Path:
    """Write the page of a `SensitivityScan`.

    Args:
        scan: from `prunus.sensitivity`.
        path: of the page.
        made: the date in its foot; today's where None.

    Raises:
        ImportError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    return write_text(path, sensitivity_page(scan, made=made))


def sensitivity_page(scan: Any, *, made: str | None = None) -> str:
    """The HTML text of a scan: a curve for each layer, then the numbers."""
    rows = [{k: v for k, v in r.items() if k != "kept"} for r in scan.records]
    dense = scan.dense[scan.metric]
    table = [
        {
            key: value if key == "layer" else shown_score(scan.metric, value, dense)
            for key, value in row.items()
        }
        for row in scan.table()
    ]
    name = named_score(scan.metric)
    section = Section(
        "Single layers",
        [
            Chart(
                "sensitivity",
                scan_chart(scan),
                rows,
                "One layer pruned, all others dense; the line is the dense network's. The layers "
                "that lose most are in colour and named at their curves' ends.",
            ),
            Table(
                "sensitivity-table",
                table,
                f"{name[:1].upper()}{name[1:]} by the density of the one layer that is pruned; the "
                f"most sensitive layer first.",
            ),
            Text(f"Pruned by `{scan.recipe!r}`."),
        ],
    )
    return page(
        "Sensitivity of layers",
        [section],
        headline=scan_headline(scan),
        lead="`scan.plan(budget)` shares a budget out so that the losses seen add up to the least.",
        footer=footing(made=made, data=scan.data_fingerprint, samples=scan.samples),
    )


def scan_headline(scan: Any) -> str:
    """The most and the least sensitive layer, and what they lose at the lowest density."""
    least = min(r["density"] for r in scan.records)
    lost = {r["layer"]: r["value"] for r in scan.records if r["density"] == least}
    rows = scan.table()
    dense = scan.dense[scan.metric]
    worst, mild = rows[0]["layer"], rows[-1]["layer"]

    def shown(value: float) -> str:
        return shown_score(scan.metric, value, dense)

    said = (
        f"The most sensitive layer is `{worst}`: pruned alone to a density of {least:g} it takes "
        f"{named_score(scan.metric)} from {shown(dense)} to {shown(lost[worst])}."
    )
    if mild != worst:
        said += f" The least sensitive is `{mild}`, to {shown(lost[mild])}."
    return said


def scan_chart(scan: Any) -> Any:
    """A curve for each layer: the metric against the layer's density; needs the extra `report`."""
    dense = float(scan.dense[scan.metric])
    share = is_share(scan.metric, [dense, *(r["value"] for r in scan.records)])
    factor = 100.0 if share else 1.0
    data = summarise(
        [
            {"method": str(r["layer"]), "compensation": scan.metric, "density": r["density"],
             "value": factor * r["value"]}
            for r in scan.records
        ],
        ["method", "compensation", "density"],
        "value",
    )  # fmt: skip
    worst = leaders(data, "density", higher=not scan.higher)
    return curves(
        data,
        x="density",
        x_title="density of the one layer that is pruned; less is left to the right",
        y_title=f"{named_score(scan.metric)}{' (%)' if share else ''}",
        best=worst,
        baseline=factor * dense,
    )
