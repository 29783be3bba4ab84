"""A certificate in words: what is of use first, then every statement, what says nothing last."""

import math
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

__all__ = ["SHOWN", "confidence", "headline", "percent", "rows_of", "text_of"]

WORDS = {"RIG": "≤", "RIG/MC": "≤", "PRED": "≈"}
SHOWN = {
    "sup": "largest gap in the ball",
    "mean_square": "root mean square gap",
    "predicted": "root mean square gap",
    "changed": "share of changed predictions",
    "exceeds": "share of inputs above t",
    "quantile": "quantile of the gap",
    "mean": "mean gap",
    "relative": "largest relative error",
    "relative_mean": "mean relative error",
}
SHARES = ("changed", "exceeds")
WIDTH = 80


def headline(certificate: Any) -> str:
    """The one sentence that a reader needs: what fresh data show, else what holds in the ball."""
    fresh = [s for s in certificate.of("changed") if s.level == "held-out"]
    if any(s.in_sample for s in (*certificate.statements, *certificate.held_out)):
        seen = [s.measured for s in fresh if s.measured is not None]
        shown = f": {percent(seen[0])} of predictions changed on them" if seen else ""
        return (
            f"These data made the pruning, so that nothing they show is a guarantee{shown}. Give "
            f"data that neither trained, calibrated nor planned."
        )
    found = []
    useful = [s for s in fresh if not s.vacuous and s.value < 1]
    if useful:
        best = min(useful, key=lambda s: s.value)
        found.append(f"at most {percent(best.value, up=True)} of predictions change")
    moves = [s for s in certificate.of("quantile") if math.isfinite(s.value)]
    if moves:
        least = min(moves, key=lambda s: s.argument)
        found.append(f"{percent(least.argument)} of outputs move by less than {least.value:.4g}")
    if found:
        delta = max(s.delta for s in (*useful, *moves))
        each = "each " if len(found) > 1 else ""
        return (
            f"With {confidence(delta)} confidence {each}on inputs like these: {'; '.join(found)}."
        )
    bounds = [s for s in certificate.of("sup") if s.status != "PRED" and not s.vacuous]
    if bounds:
        value = min(s.value for s in bounds)
        ball = "" if certificate.radius is None else f" of radius {certificate.radius:.4g}"
        return f"No input in the ball{ball} moves the output by more than {value:.4g}."
    return (
        "Nothing that is of use can be guaranteed from the weights alone. Give data that neither "
        "trained, calibrated nor planned: their statements hold for inputs like them."
    )


def text_of(certificate: Any) -> str:
    """Cautions, the headline, a table of all statements, what they assume, notes."""
    every = [*certificate.statements, *certificate.held_out]
    said = [s for s in every if not s.vacuous]
    nothing = [s for s in every if s.vacuous]
    lines = [_wrapped(f"CAUTION: {caution}") for caution in certificate.cautions]
    lines += [_wrapped(headline(certificate)), "", *_table(said)]
    if nothing:
        lines += ["", "true, but saying nothing (VACUOUS):", *_table(nothing, head=False)]
        lines += [_wrapped(f"{SHOWN[s.kind]}: {s.reason}", "  ") for s in nothing]
    lines.append("")
    if certificate.layers:
        lines += [*_layer_table(certificate.layers), ""]
    every += certificate.layers
    if any(s.in_sample for s in every):
        lines.append("IN-SAMPLE: no guarantee")
    if any(s.delta for s in every):
        lines.append("each statement holds on its own with probability ≥ 1 − its δ")
    assumed = dict.fromkeys(a for s in every for a in s.assumptions)
    if assumed:
        lines.append(_wrapped("assumed: " + "; ".join(assumed)))
    return "\n".join([*lines, *map(_wrapped, certificate.notes)]).strip()


def rows_of(statements: Sequence[Any]) -> list[dict[str, Any]]:
    """A row a statement, those that say something first, with units as text."""
    rows = []
    for s in sorted(statements, key=lambda s: s.vacuous):
        shown = percent if s.kind in SHARES else "{:.4g}".format
        value = percent(s.value, up=True) if s.kind in SHARES else shown(s.value)
        rows.append(
            {
                "statement": _what(s),
                "value": f"{WORDS[s.status]} {value}",
                "measured": "" if s.measured is None else shown(s.measured),
                "says": "nothing (vacuous)" if s.vacuous else _delta(s) or "always",
                "by": s.route,
            }
        )
    return rows


def _what(s: Any) -> str:
    if s.kind == "quantile":
        return f"{percent(s.argument)} of gaps below"
    if s.argument is not None:
        return f"share of gaps above {s.argument:.4g}"
    return SHOWN[s.kind]


def _table(statements: Sequence[Any], *, head: bool = True) -> list[str]:
    """A row a statement: what, its value, what was measured, value / measured; then by what."""
    rows = [("statement", "value", "measured", "ratio")] if head else []
    by = ["by"] if head else []
    for s in statements:
        shown = percent if s.kind in SHARES else "{:.4g}".format
        value = percent(s.value, up=True) if s.kind in SHARES else shown(s.value)
        measured = "" if s.measured is None else shown(s.measured)
        ratio = "" if s.tightness is None else f"{s.tightness:.3g}"
        rows.append((_what(s), f"{WORDS[s.status]} {value}", measured, ratio))
        kind = {"RIG": "bound", "RIG/MC": "simulated bound", "PRED": "prediction"}[s.status]
        by.append(", ".join(p for p in (kind, s.level, _delta(s), s.route) if p))
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    left = sum(widths) + 8
    lines = []
    for row, note in zip(rows, by, strict=True):
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        folded = textwrap.wrap(note, max(20, WIDTH - left)) or [""]
        lines.append(f"{'  '.join(cells)}  {folded[0]}")
        lines += [" " * left + more for more in folded[1:]]
    return lines


def _layer_table(statements: Sequence[Any]) -> list[str]:
    """A row for each layer and quantity: at the calibration inputs, fresh ones, over draws."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for s in statements:
        groups.setdefault((s.layer, s.kind), []).append(s)
    draws = any(s.level == "L2" for s in statements)
    head = ["layer", "over outputs", "calibration", "seen", "95 % fresh", "largest fresh"]
    rows = [tuple([*head, "over draws"] if draws else head)]
    for (layer, kind), own in groups.items():
        at = {(s.level, s.status): s for s in own if s.level == "L3"}
        known, fresh = at["L3", "RIG"], at["L3", "PRED"]
        held = next((s for s in own if s.level == "held-out"), None)
        drawn = next((s for s in own if s.level == "L2"), None)
        row = [layer, "largest" if kind == "relative" else "mean", _said(known),
               _number(known.measured), _said(held), _number(fresh.measured)]  # fmt: skip
        rows.append(tuple([*row, _said(drawn)] if draws else row))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
    said = ["layer by layer, |z' − z| / Σ|w||x|:", *lines]
    if any(s.vacuous for s in statements):
        said.append("(…): true, but saying nothing (VACUOUS)")
    if any(s.level == "L3" and s.status == "PRED" for s in statements):
        said.append("at fresh inputs the bounds of the calibration inputs are predictions")
    return said


def _said(statement: Any) -> str:
    """A bound; in brackets where it says nothing."""
    if statement is None:
        return ""
    return f"({statement.value:.3g})" if statement.vacuous else f"≤ {statement.value:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _delta(statement: Any) -> str:
    return f"δ = {statement.delta:.3g}" if statement.delta else ""


def percent(value: float, *, up: bool = False) -> str:
    """A share as a percentage; a bound is rounded up."""
    if not math.isfinite(value):
        return f"{value:.4g}"
    tenths = 1000 * value
    return f"{(math.ceil(tenths - 1e-9) if up else round(tenths)) / 10:g} %"


def confidence(delta: float) -> str:
    """1 − δ as a percentage with two digits of δ, rounded down: more is never promised."""
    digits = max(0, math.ceil(-math.log10(delta)) - 1)
    exact = 100 - 100 * Fraction(repr(float(delta)))  # beside 1 a float loses a small δ
    percent, rest = divmod(math.floor(exact * 10**digits), 10**digits)
    return f"{percent}.{rest:0{digits}d}".rstrip("0").rstrip(".") + "%"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent="  " + indent)
