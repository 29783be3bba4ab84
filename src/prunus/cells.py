"""How a value stands in a cell of a table that is read: on a page, in a notebook."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["UNITS", "cell_text", "right_aligned"]

NOT_FINITE = {"nan": "NaN", "inf": "∞", "-inf": "−∞"}
UNITS = "s|ms|µs|bytes|KB|MB|GB"
QUANTITY = re.compile(rf"[<≤≈]? ?[−-]?[\d., ]+(e-?\d+)?( ?(%|×|{UNITS}))?")


def cell_text(value: Any) -> str:
    """A value as it is read: four digits, thousands apart, nothing for None; no markup."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else NOT_FINITE[str(value)]
    return str(value)


def right_aligned(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> set[str]:
    """The columns of numbers, and of text that is a number with its unit.

    Text in the first column names the row, and names of layers may be numbers.
    """
    found = {c for c in columns if all(_quantity(row.get(c)) for row in rows)}
    named = any(isinstance(row.get(columns[0]), str) for row in rows)
    return found - {columns[0]} if named else found


def _quantity(value: Any) -> bool:
    if isinstance(value, str):
        return QUANTITY.fullmatch(value) is not None
    return isinstance(value, int | float | None)
