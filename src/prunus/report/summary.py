"""One pruning, or a comparison of many, as text tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunus.check import by_reason
from prunus.cost import speedup
from prunus.files import Row
from prunus.report.headline import (
    named_score,
    pruned_headline,
    shown_score,
    size_words,
    time_text,
)
from prunus.report.layers import error_text
from prunus.report.text import rendered, table_text
from prunus.weights import weight_at

__all__ = [
    "comparison_summary",
    "compressed_summary",
    "cost_rows",
    "latency_note",
    "layer_rows",
    "metric_rows",
    "shown_costs",
    "summary",
]


def layer_rows(pruned: Any) -> list[Row]:
    """One record per pruned layer: name, shape, kept, density, error, relative error, ridge.

    Parameters that lost something and that no view knows, as stacked experts, follow by name.
    """
    known = {weight_at(pruned.model, name).path for name in pruned.layers}
    other = {n: m for n, m in pruned.masks.items() if n not in known and m.ndim > 1}
    return [
        {
            "layer": name,
            "shape": " × ".join(str(n) for n in result.mask.shape),
            "kept": int(result.mask.sum()),
            "total": result.mask.numel(),
            "density": result.density,
            "error": result.error,
            "relative": result.relative_error,
            "ridge": result.ridge,
        }
        for name, result in pruned.layers.items()
    ] + [
        {
            "layer": name,
            "shape": " × ".join(str(n) for n in mask.shape),
            "kept": int(mask.sum()),
            "total": mask.numel(),
            "density": float(mask.to(torch.float64).mean()),
            "error": None,
            "relative": None,
            "ridge": None,
        }
        for name, mask in other.items()
    ]


def cost_rows(pruned: Any) -> list[Row]:
    """Parameters, multiply-adds, bytes and latency, before and after."""
    before, after = pruned.cost_before, pruned.cost_after
    rows: list[Row] = []
    for name, label in (
        ("parameters", "parameters"),
        ("macs", "multiply-adds per sample"),
        ("bytes", "bytes"),
        ("compressed", "bytes compressed, at most"),
    ):
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None:
            rows.append({"cost": label, "before": old, "after": new, "share": new / old})
    if before.latency is not None and after.latency is not None:
        old, new = before.latency.median, after.latency.median
        rows.append({"cost": "latency, s", "before": old, "after": new, "share": new / old})
    return rows


def shown_costs(pruned: Any) -> list[Row]:
    """The same in the units that read best, shares in percent."""
    forms = {"bytes": size_words, "bytes compressed, at most": size_words, "latency, s": time_text}
    return [
        {
            "cost": row["cost"].removesuffix(", s"),
            "before": forms.get(row["cost"], "{:,}".format)(row["before"]),
            "after": forms.get(row["cost"], "{:,}".format)(row["after"]),
            "left": f"{100 * row['share']:.3g} %",
        }
        for row in cost_rows(pruned)
    ]


def latency_note(pruned: Any) -> str:
    """What the measured latencies say, with their conditions, in one sentence."""
    before, after = pruned.cost_before.latency, pruned.cost_after.latency
    if before is None or after is None:
        return "latency: not measured; `measured()` adds it"
    gain = speedup(before, after)
    found = gain.words
    if not pruned.recipe.granularity.shrinks:
        found = (
            f"no gain: the zeros lie inside dense tensors, which take a dense network's time "
            f"({gain.ratio:.2f}×, {gain.low:.2f} to {gain.high:.2f})"
        )
    how = f"median of {before.runs} calls each, {before.level:.0%} intervals"
    how += f", batch {before.batch}, {before.threads} thread{'' if before.threads == 1 else 's'}"
    return f"latency: {found} ({how})"


def selection_notes(pruned: Any) -> list[str]:
    """How layers were drawn where that is not exact, and kernels that say little, in words."""
    found: dict[str, list[str]] = {}
    for name, layer in pruned.layers.items():
        if "interpolates" in layer.notes:
            found.setdefault("layer error of fewer samples than weights", []).append(name)
        draw, kernel = layer.notes.get("draw"), layer.notes.get("kernel")
        if draw is not None and draw != "exact":
            found.setdefault(f"drawn by {draw}", []).append(name)
        if kernel is not None:
            found.setdefault(f"kernel is {kernel}", []).append(name)
    return [f"{said}: {', '.join(names)}" for said, names in found.items()]


def summary(pruned: Any) -> str:
    """The layers, what they keep and what it cost, as a text table."""
    cost = pruned.cost_after
    head = (
        f"{pruned.name}, seed {pruned.seed}: density {cost.density:.4g} of the selected weights, "
        f"{cost.model_density:.4g} of the whole model"
    )
    layers = [
        {
            "layer": row["layer"],
            "shape": row["shape"],
            "kept": f"{row['kept']:,}",
            "density": f"{row['density']:.4g}",
            "layer error": error_text(row["error"], row["relative"]),
        }
        for row in layer_rows(pruned)
    ]
    layers += [
        {"layer": name or "the model itself", "shape": "", "kept": "", "density": "dense",
         "layer error": ""}
        for name in pruned.not_pruned
    ]  # fmt: skip
    lines = [latency_note(pruned)]
    lines += [
        f"not pruned: {', '.join(name or 'the model itself' for name in names)}, because {why}"
        for why, names in by_reason(pruned.not_pruned).items()
    ]
    lines += [*selection_notes(pruned), *pruned.plan.notes, *pruned.notes]
    parts: list[Any] = [
        head, pruned_headline(pruned), table_text(layers), table_text(shown_costs(pruned)),
    ]  # fmt: skip
    if pruned.metrics:
        parts.append(_metrics(pruned.metrics))
    return rendered(*parts, *lines)


def metric_rows(metrics: Any) -> list[Row]:
    """One record per metric: its value at each stage ("before", "pruned", "trained")."""
    stages = {
        stage: value if isinstance(value, Mapping) else {"metric": value}
        for stage, value in metrics.items()
    }
    names = dict.fromkeys(name for values in stages.values() for name in values)
    return [
        {"metric": name, **{stage: values.get(name) for stage, values in stages.items()}}
        for name in names
    ]


def _metrics(metrics: Any) -> str:
    return table_text(
        [
            {
                "metric": named_score(str(row["metric"])),
                **{stage: _shown(str(row["metric"]), row[stage]) for stage in metrics},
            }
            for row in metric_rows(metrics)
        ]
    )


def _shown(name: str, value: Any) -> str:
    return "" if value is None else shown_score(name, float(value))


def comparison_summary(comparison: Any) -> str:
    """The metric by recipe (rows) and density (columns), mean ± standard error over seeds."""
    rows = comparison.table()
    found = {(row["recipe"], row["density"]): row for row in rows}
    densities = dict.fromkeys(row["density"] for row in rows)

    def cell(recipe: str, density: Any) -> str:
        row = found.get((recipe, density))
        return "" if row is None else _mean(row[comparison.metric], row["standard_error"])

    return table_text(
        [
            {"recipe": recipe, **{str(d): cell(recipe, d) for d in densities}}
            for recipe in dict.fromkeys(row["recipe"] for row in rows)
        ],
        title=f"{comparison.metric}; dense {comparison.dense[comparison.metric]:.4g}",
    )


def aligned(head: str, rows: list[Row], lines: Sequence[str]) -> str:
    """A line, a table of records, and further lines, as text."""
    shown = [{k: v if isinstance(v, str) else _number(v) for k, v in row.items()} for row in rows]
    return rendered(head, table_text(shown), *lines)


def compressed_summary(compressed: Any) -> str:
    """The bytes of a compressed network by layer and part, as a text table."""
    parts = list(dict.fromkeys(part for own in compressed.parts.values() for part in own))
    rows = []
    for name, own in compressed.parts.items():
        facts = compressed.layers.get(name, {})
        about = {"shape": "", "kept": "", "values": "", "mask coder": ""}
        if facts:
            about = {
                "shape": " × ".join(str(n) for n in facts["shape"]),
                "kept": f"{facts['kept']:,}",
                "values": str(facts.get("k", "all")),
                "mask coder": facts["coder"],
            }
        bytes_of = {part: f"{own[part]:,.0f}" if part in own else "" for part in parts}
        rows.append({"layer": name if facts else "everything else", **about, **bytes_of})
    said = (
        f"{compressed.path}: {compressed.bytes:,} bytes, {compressed.ratio:.1f} times smaller "
        f"than the {compressed.dense_bytes:,} bytes of the dense parameters"
    )
    return rendered(table_text(rows), said)


def _mean(mean: float, error: float | None) -> str:
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
