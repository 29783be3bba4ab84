"""The account of a pruned folder as text and as a page."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunus.check import by_reason
from prunus.files import Row, write_text
from prunus.recipe import as_written
from prunus.report.footing import footing
from prunus.report.layers import error_text, layer_charts, shown_layers
from prunus.report.page import Section, Table, Text, page
from prunus.report.summary import aligned

__all__ = ["folder_page", "folder_rows", "folder_summary", "write_folder_report"]


def folder_rows(result: Any) -> list[Row]:
    """A row per kind of layer, those of all blocks together: what it keeps, and its error.

    The mean error is in squared output units; `relative` is the sum of the errors over the sum of
    what the dense layers give, None where an account does not say that.
    """
    kinds: dict[str, list[Any]] = {}
    for name, own in result.layers.items():
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        kinds.setdefault(kind, []).append(own)
    rows = []
    for kind, layers in kinds.items():
        kept, total = sum(o.kept for o in layers), sum(o.total for o in layers)
        measured = [o for o in layers if o.error is not None]
        powers = [o.power for o in measured]
        known = bool(powers) and all(powers)
        rows.append(
            {
                "layers": kind,
                "blocks": len(layers),
                "kept": kept,
                "of": total,
                "density": kept / total,
                "error": sum(o.error for o in measured) / len(measured) if measured else None,
                "relative": sum(o.error for o in measured) / sum(powers) if known else None,
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
        {
            **{key: row[key] for key in ("layers", "blocks", "kept", "of", "density")},
            "mean error": error_text(row["error"], row["relative"]),
        }
        for row in folder_rows(result)
    ]
    lines = [f"{stage}: {score}" for stage, score in (scores or {}).items()]
    return aligned(head, rows, [*lines, *_remarks(result)])


def write_folder_report(
    result: Any,
    path: str | os.PathLike[str],
    scores: Mapping[str, Any] | None = None,
    *,
    made: str | None = None,
) -> Path:
    """Write one self-contained HTML page; needs the extra `report`.

    Args:
        result: a `FolderResult`.
        path: of the page.
        scores: {stage: `Perplexity`}.
        made: the date in its foot; today's where None.
    """
    return write_text(path, folder_page(result, scores, made=made))


def folder_page(
    result: Any, scores: Mapping[str, Any] | None = None, *, made: str | None = None
) -> str:
    """The HTML text of a `FolderResult`; `made` is the date in its foot, today's where None."""
    lead = (
        f"Recipe **{result.name}**, seed {result.seed}: {100 * result.density:.4g} % of the "
        f"weights in {len(result.layers)} layers are kept. {result.tokens} tokens "
        f"calibrated; the blocks took {result.seconds:.1f} s."
    )
    rows = [
        {"layer": n, "density": o.kept / o.total, "error": o.error, "relative": o.relative_error}
        for n, o in result.layers.items()
    ]
    sections = [Section("Pictures", [layer_charts(rows, "text")])]
    if scores:
        sections.append(Section("Perplexity", [Table("perplexity", list(_scores(scores)), SCORES)]))
    kinds = Table(
        "kinds",
        shown_layers(folder_rows(result)),
        "Kinds of layers, all blocks together; errors are means over the blocks.",
        KIND_TITLES,
    )
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
        footer=footing(made=made, samples=result.tokens, unit="tokens"),
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


KIND_TITLES = {"error": "error (squared units)", "relative": "error (of the output)"}
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
