"""What a certificate says, on a page: statements, each layer's part, the gaps that were seen."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunus.files import Row, write_text
from prunus.report.charts import COLOURS, bars, filling
from prunus.report.figure import require
from prunus.report.footing import footing
from prunus.report.page import Block, Chart, Section, Table, Text, page
from prunus.theory.gap.statement import WORDS, Certificate, Statement
from prunus.theory.gap.words import SHOWN, confidence, headline, percent, rows_of

__all__ = ["certificate_page", "certificate_sections", "gap_histogram", "write_certificate"]

BINS = 30
STATED = ("what", "at_most", "seen", "ratio", "delta", "kind", "says", "by")  # CSV files have more
DASHES = {"bound": [6, 4], "prediction": [1, 0], "measured": [2, 3]}


def write_certificate(
    certificate: Certificate, path: str | os.PathLike[str], *, made: str | None = None
) -> Path:
    """Write the page of a `Certificate` alone.

    Args:
        certificate: what `certify` found.
        path: of the page.
        made: the date in its foot; today's where None.

    Raises:
        ImportError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    return write_text(path, certificate_page(certificate, made=made))


def certificate_page(certificate: Certificate, *, made: str | None = None) -> str:
    """The HTML text of a certificate."""
    cautions = [f"Caution: {caution}." for caution in certificate.cautions]
    return page(
        "What is guaranteed",
        [replace(section, title="Statements") for section in certificate_sections(certificate)],
        headline="\n\n".join([*cautions, headline(certificate)]),
        lead="The gap is ‖F(x) − f(x)‖, the distance of the outputs before and after pruning.",
        footer=footing(made=made),
    )


def certificate_sections(certificate: Certificate) -> list[Section]:
    """In words, the charts, the statements with their measured values, the ledger, the assumptions.

    Bounds that say nothing stand last, with their reasons.
    """
    everything = (*certificate.statements, *certificate.held_out)
    layers = certificate.layers
    says: list[Block | Sequence[Block]] = [Text(_headline(certificate))]
    empty = [s for s in everything if s.vacuous]
    titles = {"at_most": "value", "seen": "measured", "delta": "δ", "ratio": "value / measured"}
    below: list[Block] = []
    statements = Table(
        "statements",
        [_row(s) for s in sorted(everything, key=lambda s: s.vacuous)],
        "Every statement holds on its own with probability at least 1 − its δ (0: always); "
        "a prediction is none.",
        titles,
        shown=STATED,
    )
    if layers:
        below.append(
            Table(
                "layer-statements",
                [{"layer": s.layer, **_row(s)} for s in layers],
                "Of each layer by itself, at the inputs that the dense network gives it: by how "
                "much its outputs move, relative to Σ|w||x|, the sum of the terms' sizes.",
                titles,
                folded=len(layers) > 12,
                shown=("layer", *STATED),
            )
        )
    charts: list[Block] = []
    parts = [
        {"layer": name, "contribution": row["contribution"], **{
            key: row[key] for key in ("dense", "pruned", "difference") if key in row}}
        for name, row in certificate.per_layer.items()
        if math.isfinite(row.get("contribution", math.inf))
    ]  # fmt: skip
    if parts:
        charts.append(
            Chart(
                "contribution",
                bars(parts, label="layer", value="contribution", x_title="bound on the gap"),
                parts,
                "The product bound on the gap over the ball if this layer alone were pruned; with "
                "the norms of its weights before, after, and of their difference.",
                "Where the bound comes from",
            )
        )
    if certificate.gaps:
        marks = gap_marks(certificate)
        charts.append(
            Chart(
                "gaps",
                gap_histogram(certificate.gaps, marks),
                gap_bins(certificate.gaps),
                _caption(certificate, marks),
                "Gaps that were measured",
            )
        )
    if charts:
        says.append(charts)
    says += [statements, *below]
    if empty:
        says.append(
            Text(
                "\n\n".join(
                    f"**Vacuous**: the bound on the {SHOWN[s.kind]}, {s.value:.4g}, says nothing: "
                    f"{s.reason}."
                    for s in empty
                )
            )
        )
    ledger = [
        {"statement": _what(s), "event": event, "share of delta": share}
        for s in (*everything, *layers)
        for event, share in s.ledger
    ]
    if ledger:
        says.append(
            Table(
                "ledger",
                ledger,
                "What each statement rests on, and the probability that it fails.",
                {"share of delta": "share of δ"},
                folded=len(ledger) > 8,
            )
        )
    assumed = list(dict.fromkeys(a for s in (*everything, *layers) for a in s.assumptions))
    words = [f"Assumed: {a}." for a in assumed] + [f"{n}." for n in certificate.notes]
    if words:
        says.append(Text("\n\n".join(words)))
    return [Section("What is guaranteed", says)]


def _headline(certificate: Certificate) -> str:
    """The most useful sentences first: fresh data, then the ball."""
    lines = []
    changed = [s for s in certificate.of("changed") if s.route == "Clopper-Pearson"]
    quantiles = [s for s in certificate.of("quantile") if s.argument == 0.95]
    for s in (*changed, *quantiles):
        what = (
            f"at most **{percent(s.value, up=True)}** of predictions change"
            if s.kind == "changed"
            else f"95 % of inputs have a gap of at most **{s.value:.4g}**"
        )
        lines.append(
            f"On the data that also calibrated or planned, {what}: no guarantee for fresh data."
            if s.in_sample
            else f"On fresh data, {what}, with probability at least {confidence(s.delta)}."
        )
    if math.isfinite(certificate.value):
        ball = "" if certificate.radius is None else f" of radius {certificate.radius:.4g}"
        empty = any(s.vacuous and s.value == certificate.value for s in certificate.of("sup"))
        lines.append(
            f"No input in the ball{ball} has a gap above **{certificate.value:.4g}**"
            + (", which says nothing: see below." if empty else ".")
        )
    else:
        lines.append("No finite bound over a ball of inputs is known for this network.")
    return "\n\n".join(lines)


def _what(s: Statement) -> str:
    if s.argument is None:
        return SHOWN[s.kind]
    return f"{SHOWN[s.kind]} ({s.argument:.4g})"


def _row(s: Statement) -> dict[str, Any]:
    words = "in-sample, no guarantee" if s.in_sample else WORDS[s.status]
    told = rows_of([s])[0]
    return {
        "what": told["statement"],
        "at_most": told["value"],
        "seen": told["measured"],
        "ratio": s.tightness,
        "delta": s.delta,
        "kind": f"{words}, {s.level}",
        "says": "nothing" if s.vacuous else "",
        "by": s.route,
        "vacuous": s.vacuous,
        "value": s.value,
        "measured": s.measured,
        "level": s.level,
    }


def gap_marks(certificate: Certificate) -> list[Row]:
    """Lines to draw across the histogram: {label, kind, at}, positive and finite ones."""
    marks: list[Row] = []
    if math.isfinite(certificate.value):
        marks.append({"label": "bound over the ball", "kind": "bound", "at": certificate.value})
    for s in certificate.of("mean_square"):
        marks.append({"label": "rms: bound", "kind": "bound", "at": s.value})
        if s.measured is not None:
            marks.append({"label": "rms: measured", "kind": "measured", "at": s.measured})
    marks += [
        {"label": "rms: prediction", "kind": "prediction", "at": s.value}
        for s in certificate.of("predicted")
    ]
    for s in certificate.of("quantile"):
        kind = "measured" if s.in_sample else "bound"
        marks.append({"label": f"{s.argument:.0%} of gaps ≤", "kind": kind, "at": s.value})
    return [m for m in marks if math.isfinite(m["at"]) and m["at"] > 0]


def gap_bins(gaps: Sequence[float], bins: int = BINS) -> list[Row]:
    """Counts between edges that are evenly spaced in the logarithm; gaps of 0 are left out."""
    seen = [g for g in gaps if g > 0 and math.isfinite(g)]
    if not seen:
        return []
    low, high = math.log(min(seen)), math.log(max(seen))
    width = (high - low) / bins or 0.02
    counts = [0] * bins
    for gap in seen:
        counts[min(bins - 1, int((math.log(gap) - low) / width))] += 1
    return [
        {"from": math.exp(low + i * width), "to": math.exp(low + (i + 1) * width), "inputs": n}
        for i, n in enumerate(counts)
    ]


def gap_histogram(gaps: Sequence[float], marks: Sequence[dict[str, Any]]) -> Any:
    """How many inputs have which gap, on a logarithmic axis, with a line for every mark.

    Bounds are dashed, predictions solid, measurements dotted.

    Raises:
        ValueError: there are no gaps.
        ImportError: the extra `report` is not installed.
    """
    alt = require("altair", "report")
    if not gaps:
        raise ValueError("`gaps` must hold at least one gap to draw, got none.")
    rows = gap_bins(gaps)
    if not rows:
        rows, marks = [{"from": 0.5, "to": 2.0, "inputs": 0}], []
    scale = alt.Scale(type="log", nice=False, padding=12)
    axis = alt.Axis(format="~g", tickCount=6, labelOverlap=True)
    columns = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=COLOURS[5])
        .encode(
            x=alt.X("from:Q", title="gap, in units of the output", scale=scale, axis=axis),
            x2="to:Q",
            y=alt.Y("inputs:Q", title="inputs", axis=alt.Axis(tickCount=5, format="~s")),
            y2=alt.Y2(datum=0),
            tooltip=[
                alt.Tooltip("from:Q", format=".3~g"),
                alt.Tooltip("to:Q", format=".3~g"),
                alt.Tooltip("inputs:Q"),
            ],
        )
    )
    if not marks:
        return filling(columns, 260)
    labels = [m["label"] for m in marks]
    colours = [COLOURS[i % len(COLOURS)] for i in (1, 2, 3, 0, 4, 6, 7, 8, 9)]
    lines = (
        alt.Chart(alt.Data(values=[dict(m) for m in marks]))
        .mark_rule(strokeWidth=1.8)
        .encode(
            x=alt.X("at:Q", title="gap, in units of the output", scale=scale),
            color=alt.Color(
                "label:N",
                title=None,
                scale=alt.Scale(domain=labels, range=colours[: len(labels)]),
                legend=alt.Legend(orient="bottom", columns=2, labelLimit=150, symbolType="stroke"),
            ),
            strokeDash=alt.StrokeDash(
                "kind:N",
                legend=None,
                scale=alt.Scale(domain=list(DASHES), range=list(DASHES.values())),
            ),
            tooltip=[alt.Tooltip("label:N"), alt.Tooltip("at:Q", format=".4~g")],
        )
    )
    return filling(alt.layer(columns, lines), 260)


def _caption(certificate: Certificate, marks: Sequence[dict[str, Any]]) -> str:
    zero = sum(g == 0 for g in certificate.gaps)
    words = f"‖F(x) − f(x)‖ of {len(certificate.gaps)} inputs"
    words += f", {zero} of them 0 and not drawn." if zero else "."
    if marks:
        words += " Bounds are dashed, predictions solid, measurements dotted: "
        words += "; ".join(f"{m['label']} {m['at']:.4g}" for m in marks) + "."
    return words
