"""The page of a comparison: error against density, at equal parameters, by layer, in time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.files import Row, Rows, write_text
from prunus.presets import PRESETS
from prunus.recipe import Recipe
from prunus.report.charts import intervals, layer_map, summarise
from prunus.report.curves import curves, leaders
from prunus.report.footing import footing
from prunus.report.headline import (
    comparison_headline,
    higher_is_better,
    named_score,
    time_text,
)
from prunus.report.page import Block, Chart, Heading, Section, Table, Text, page
from prunus.report.tables import RECIPE_COLUMNS, recipe_rows, score_rows

__all__ = [
    "comparison_page",
    "comparison_rows",
    "network_section",
    "task_headline",
    "write_comparison",
]

COMPENSATION = ("without least squares", "with least squares")
# Of every run, what stands on the page; the CSV file has the rest.
SHOWN = ("recipe", "density", "seed", "{score}", "parameters", "macs", "bytes", "seconds")


def comparison_rows(comparison: Any, *, network: str = "") -> list[Row]:
    """The records of a `Comparison` as this module draws them.

    Returns:
        rows with network, recipe, density, density_met, seed, score, parameters, macs, and
        layer_density {layer: density} of the first run of each recipe and density.
    """
    rows = []
    seen = set()
    for record in comparison.records:
        key = (record["recipe"], record["density"])
        first = key not in seen
        seen.add(key)
        rows.append(
            {
                "network": network,
                "recipe": record["recipe"],
                "density": record["density"],
                "density_met": record["density_met"],
                "seed": record["seed"],
                "score": record[comparison.metric],
                "dense": record[f"{comparison.metric}_before"],
                "parameters": record["parameters"],
                "macs": record["macs"],
                "nodes": _removes_nodes(record["recipe"], comparison.recipes),
                "layer_density": dict(record["layer_densities"]) if first else None,
            }
        )
    return rows


def network_section(
    rows: Rows, latencies: Rows = (), *, metric: str, prefix: str = "", title: str = "Results"
) -> Section:
    """What there is to say on one network.

    Args:
        rows: as `comparison_rows` gives them, of one network.
        latencies: rows with recipe, density, batch, threads, speedup, speedup_low, speedup_high,
            parameters, dense_seconds, compact_seconds and benefit.
        metric: name of the score.
        prefix: put before the names of files and charts, to keep them apart on a page.
        title: the section's title.
    """
    name, factor = _metric(metric)
    tidy = [_tidy(r, factor) for r in rows]
    levels = [r["dense"] for r in tidy if r["dense"] is not None]
    dense = sum(levels) / len(levels) if levels else None
    over = _over(tidy)
    scores = [r["score"] for r in tidy if r["score"] is not None]
    higher = bool(scores) and higher_is_better(metric, dense, scores)
    reading = (
        "Open points on dotted lines are without least squares, filled points on solid lines with "
        "it. The best by their mean rank are in colour and named."
    )

    def curve(stem: str, chosen: Rows, x: str, x_title: str, label: str = "") -> list[Block]:
        data = summarise(
            [r for r in chosen if r[x] is not None], ["method", "compensation", x], "score"
        )
        if not data:
            return []
        best = leaders(data, x, higher=higher)
        chart = curves(
            data, x=x, x_title=x_title, y_title=name, styles=COMPENSATION, best=best, baseline=dense
        )
        said = comparison_headline([_plain_score(r, factor) for r in chosen], metric,
                                   None if dense is None else dense / factor)  # fmt: skip
        drawn = _over(chosen)
        if "seeds" in drawn:
            drawn += "; the band reaches from the lowest to the highest seed"
        caption = f"{' '.join(said)} Points: {drawn}. {reading}"
        return [Chart(f"{prefix}{stem}", chart, data, caption, label)]

    both: list[Block] = []
    for nodes, label in ((False, "Weights removed"), (True, "Nodes removed")):
        stem = f"{'nodes' if nodes else 'weights'}-by-density"
        chosen = [r for r in tidy if r["nodes"] == nodes]
        both += curve(
            stem, chosen, "at", "density (kept / total); less is left to the right", label
        )
    blocks: list[Block | Sequence[Block]] = [Heading(f"{_capital(name)} against density"), both]
    shown: list[Block] = [
        Text(
            "The same runs on one axis, by the parameters that are left in the whole network. "
            "Removed weights leave zeros, which take part in no product but stay in the tensors; "
            "removed nodes leave smaller tensors."
        ),
        *curve("by-parameters", tidy, "parameters", "parameters left in the network"),
    ]
    table = Table(
        f"{prefix}scores",
        score_rows(
            [{"recipe": r["recipe"], "density": r["density"], "s": r["score"]} for r in tidy], "s"
        ),
        f"{_capital(name)}, {over}"
        + ("" if dense is None else f"; the dense network has {dense:.4g}")
        + ".",
    )
    blocks += [Heading("At equal parameters"), *shown, table]
    each = [
        {"method": r["recipe"], "layer": layer, "density": float(r["density"]), "kept": share}
        for r in tidy
        if r["layer_density"] and r["compensation"] == COMPENSATION[0] and not r["is_text"]
        for layer, share in r["layer_density"].items()
    ]
    if each:
        layers = [
            {"method": r["method"], "layer": r["layer"], "density": r["density"],
             "layer_density": r["mean"]}
            for r in summarise(each, ["method", "layer", "density"], "kept")
        ]  # fmt: skip
        caption = (
            "Kept / total of each layer's weights. For nodes, both the removed outputs and the "
            "inputs that went with them count."
        )
        chart = Chart(f"{prefix}layers", layer_map(layers), layers, caption)
        blocks += [Heading("Layer by layer"), chart]
    if latencies:
        blocks += [Heading("Measured latency"), *_latency(latencies, prefix)]
    return Section(title, blocks)


def task_headline(rows: Rows, metric: str, *, title: str = "") -> str:
    """What `network_section` has to say on one network, in sentences, its title first."""
    levels = [float(r["dense"]) for r in rows if r["dense"] is not None]
    dense = sum(levels) / len(levels) if levels else None
    said = " ".join(comparison_headline(rows, metric, dense))
    return f"**{title}.** {said}" if title else said


def comparison_page(
    sections: Sequence[Section],
    recipes: Mapping[str, Recipe] | Sequence[str | Recipe],
    *,
    title: str,
    headline: str = "",
    lead: str = "",
    footer: str = "",
) -> str:
    """The sections, then the table of recipes with their papers, as one HTML text."""
    about = Table(
        "recipes",
        recipe_rows(recipes),
        "What each recipe keeps, the parts it is made of, and the paper that proposes it. A name "
        "with `+ls` has the same masks and new values for the kept weights by least squares.",
        shown=RECIPE_COLUMNS,
    )
    every = [*sections, Section("Recipes", [about])]
    return page(title, every, headline=headline, lead=lead, footer=footer)


def write_comparison(
    comparison: Any, path: str | os.PathLike[str], *, made: str | None = None
) -> Path:
    """Write the page of one `Comparison`.

    Args:
        comparison: from `prunus.compare`.
        path: of the page.
        made: the date in its foot; today's where None.

    Raises:
        ImportError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    results = network_section(
        comparison_rows(comparison), comparison.latencies, metric=comparison.metric
    )
    shown = [column.format(score=comparison.metric) for column in SHOWN]
    records = Table(
        "records", [_flat(r) for r in comparison.records], "Every run.", folded=True, shown=shown
    )
    sections = [results, Section("Runs", [records])]
    count = len(comparison.records)
    return write_text(
        path,
        comparison_page(
            sections,
            comparison.recipes,
            title="Pruning recipes compared",
            headline=comparison.headline(),
            lead=f"{len(comparison.recipes)} recipes, {count} runs on one network.",
            footer=footing(made=made, data=comparison.data_fingerprint, samples=comparison.samples),
        ),
    )


def _latency(rows: Rows, prefix: str) -> list[Block]:
    tidy = [
        {
            "method": r["recipe"],
            "density": r["density"],
            "value": r["speedup"],
            "low": r["speedup_low"],
            "high": r["speedup_high"],
        }
        for r in rows
        if not str(r["recipe"]).endswith("+ls")  # the same shapes, hence the same time
    ]
    first = rows[0]
    caption = (
        f"Time of the dense network over that of the compact one, both measured in turn: medians "
        f"with the intervals' ends divided crosswise, batch of {first['batch']}, "
        f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}. "
        f"Where an interval contains 1 there is no benefit."
    )
    chart = intervals(tidy or [], x_title="speed-up (×)") if tidy else None
    blocks: list[Block] = []
    if chart is not None:
        blocks.append(Chart(f"{prefix}speed-up", chart, tidy, caption))
    table = [
        {
            "recipe": r["recipe"],
            "density": r["density"],
            "parameters": r["parameters"],
            "dense": time_text(r["dense_seconds"]),
            "compact": time_text(r["compact_seconds"]),
            "speedup": r["speedup"],
            "speedup_low": r["speedup_low"],
            "speedup_high": r["speedup_high"],
            "benefit": r["benefit"],
        }
        for r in rows
    ]
    return [*blocks, Table(f"{prefix}latency", table, "Every measurement.", folded=True)]


def _tidy(row: Mapping[str, Any], factor: float) -> dict[str, Any]:
    base, plus, _ = str(row["recipe"]).partition("+")
    text = not isinstance(row["density"], int | float)
    return {
        **row,
        "method": base,
        "compensation": COMPENSATION[bool(plus)],
        "is_text": text,
        "at": float(row["density_met"] if text else row["density"]),
        "score": None if row["score"] is None else factor * float(row["score"]),
        "dense": None if row["dense"] is None else factor * float(row["dense"]),
    }


def _plain_score(row: Mapping[str, Any], factor: float) -> dict[str, Any]:
    score = row["score"]
    return {"recipe": row["recipe"], "density": row["density"], "seed": row["seed"],
            "score": None if score is None else score / factor}  # fmt: skip


def _metric(metric: str) -> tuple[str, float]:
    """How a metric is called on an axis, and what it is multiplied with."""
    name = named_score(metric).removeprefix("the ")
    return (f"{name} (%)", 100.0) if metric in ("test_error", "accuracy") else (name, 1.0)


def _over(rows: Rows) -> str:
    """Over how many seeds a score is the mean: recipes that draw nothing ran once."""
    runs: dict[tuple[Any, Any], int] = {}
    for row in rows:
        key = (row["recipe"], row["density"])
        runs[key] = runs.get(key, 0) + 1
    most = max(runs.values(), default=1)
    if most == 1:
        return "one run each"
    same = min(runs.values()) == most
    return f"mean over {most} seeds" if same else f"mean over up to {most} seeds"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _removes_nodes(name: str, recipes: Mapping[str, Recipe]) -> bool:
    recipe = recipes.get(name)
    if recipe is None:
        preset = PRESETS.get(name.partition("+")[0])
        if preset is None:
            return False
        recipe = preset.recipe
    return type(recipe.granularity).__name__ == "Node"


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not isinstance(v, Mapping)}
