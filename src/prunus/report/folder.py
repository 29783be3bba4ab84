"""The account of a pruned folder as text and as a page."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunus.check import by_reason
from prunus.files import write_text
from prunus.recipe import as_written
from prunus.report.charts import bars
from prunus.report.footing import footing
from prunus.report.page import Chart, Section, Table, Text, page
from prunus.report.summary import aligned

__all__ = ["folder_page", "folder_rows", "folder_summary", "write_folder_report"]


def folder_rows(result: Any) -> list[dict[str, Any]]:
    """A row per kind of layer, those of all blocks together: what it keeps, and its mean error."""
    kinds: dict[str, list[Any]] = {}
    for name, own in result.layers.items():
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        kinds.setdefault(kind, []).append(own)
    rows = []
    for kind, layers in kinds.items():
        kept, total = sum(o.kept for o in layers), sum(o.total for o in layers)
        errors = [o.error for o in layers if o.error is not None]
        rows.append(
            {
                "layers": kind,
                "blocks": len(layers),
                "kept": kept,
                "of": total,
                "density": kept / total,
                "mean error": sum(errors) / len(errors) if errors else None,
            }
        )
    return rows


def folder_summary(result: Any, scores: Mapping[str, Any] | None = None) -> str:
    """What was kept, what it took, what was left whole, and the perplexities."""
    head = (
        f"{result.name}, seed {result.seed}: {result.kept} of {result.total} weights kept in "
        f"{len(result.layers)} layers, density {result.density:.4g}; {result.tokens} tokens "
        f"calibrated, {result.seconds:.1f} s"
    )
    rows = [
        {**row, "mean error": "not measured" if row["mean error"] is None else row["mean error"]}
        for row in folder_rows(result)
    ]
    lines = [f"{stage}: {score}" for stage, score in (scores or {}).items()]
    return aligned(head, rows, [*lines, *_remarks(result)])


def write_folder_report(
    result: Any, path: str | os.PathLike[str], scores: Mapping[str, Any] | None = None
) -> Path:
    """Write one self-contained HTML page; needs the extra `report`.

    Args:
        result: a `FolderResult`.
        path: of the page.
        scores: {stage: `Perplexity`}.
    """
    return write_text(path, folder_page(result, scores))


def folder_page(
    result: Any, scores: Mapping[str, Any] | None = None, *, made: str | None = None
) -> str:
    """The HTML text of a `FolderResult`; `made` is the date in its foot, today's where None."""
    lead = (
        f"Recipe **{result.name}**, seed {result.seed}: {100 * result.density:.4g} % of the "
        f"weights in {len(result.layers)} layers are kept. {result.tokens} tokens "
        f"calibrated; the blocks took {result.seconds:.1f} s."
    )
    rows = [{"layer": n, "density": o.kept / o.total} for n, o in result.layers.items()]
    errors = [
        {"layer": n, "error": o.error} for n, o in result.layers.items() if o.error is not None
    ]
    charts = [
        Chart("density", bars(rows, label="layer", value="density",
              x_title="density (kept / total)", low=0, high=1), rows, "What each layer keeps."),
    ]  # fmt: skip
    if any(row["error"] > 0 for row in errors):
        charts.append(
            Chart(
                "error",
                bars(errors, label="layer", value="error", x_title="mean squared output error"),
                errors,
                "E‖Wx − W′x‖² on the calibration text, in squared output units.",
            )
        )
    sections = [Section("Pictures", [charts])]
    if scores:
        sections.append(Section("Perplexity", [Table("perplexity", list(_scores(scores)), SCORES)]))
    kinds = Table("kinds", folder_rows(result), "Kinds of layers, all blocks together.")
    sections.append(Section("Layers", [kinds]))
    remarks = _remarks(result)
    if remarks:
        sections.append(Section("Remarks", [Text("\n\n".join(remarks))]))
    sections.append(Section("Recipe", [Text(f"`{result.recipe}`"), Text(result.needs.summary())]))
    return page(
        f"{result.folder.name}, pruned by {result.name}",
        sections,
        headline=_headline(result, scores),
        lead=lead,
        footer=footing(made=made),
    )


def _headline(result: Any, scores: Mapping[str, Any] | None) -> str:
    """Perplexity at every stage, and what is left."""
    said = ", ".join(
        f"{score.value:.4g} {stage} ({score.interval[0]:.4g} to {score.interval[1]:.4g})"
        for stage, score in (scores or {}).items()
    )
    first = f"Perplexity is {said}." if said else "Not scored: no text for perplexity was given."
    smaller = as_written(result.recipe).granularity.shrinks
    return (
        f"{first} {result.kept:,} of {result.total:,} weights in {len(result.layers)} layers are "
        f"left ({100 * result.density:.3g} %). "
        + ("The network is smaller." if smaller else "Zeros in dense tensors save no time.")
    )


SCORES = (
    "exp of the mean negative log-likelihood; it depends on window and stride. The interval is a "
    "95 % bootstrap over windows."
)


def _scores(scores: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for stage, score in scores.items():
        low, high = score.interval
        yield {
            "network": stage,
            "perplexity": score.value,
            "low": low,
            "high": high,
            "window": score.window,
            "stride": score.stride,
            "tokens": score.tokens,
            "windows in-sample": score.in_sample,
        }


def _remarks(result: Any) -> list[str]:
    left = [
        f"{len(names)} left whole ({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): {why}"
        for why, names in by_reason(result.not_pruned).items()
    ]
    gone = [f"taken out: {', '.join(result.gone)}"] if result.gone else []
    return [*gone, *left, *result.notes]
