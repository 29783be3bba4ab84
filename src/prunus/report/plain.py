"""Rows and charts as text that other programs read: JSON in a page, CSV in a spreadsheet."""

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from prunus.files import Rows

__all__ = ["columns_of", "plain_json", "table_csv"]

# What begins a formula, the wide forms too, or hides what does.
FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n")


def columns_of(rows: Rows) -> list[str]:
    """The keys of all rows, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def table_csv(rows: Rows) -> str:
    """The rows as CSV with a header, full precision, lines ending in a newline.

    A text that a spreadsheet would take for a formula begins with an apostrophe, which says that
    it is a text. Numbers stay as they are.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = columns_of(rows)
    writer.writerow(map(_literal, columns))
    for row in rows:
        writer.writerow([_literal(row.get(column, "")) for column in columns])
    return out.getvalue()


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # `csv` would not quote it
    return f"'{text}" if text.startswith(FORMULAS) else text


def plain_json(value: Any, **options: Any) -> str:
    """JSON for every reader: NaN and infinities are null, and no `<` begins a tag of a page."""
    return json.dumps(_plain(value), allow_nan=False, **options).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
