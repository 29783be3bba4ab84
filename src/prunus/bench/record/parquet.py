"""Rows of a Parquet file, and what DuckDB's errors are called here."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.report.figure import require

__all__ = ["errors", "parquet_rows", "quoted"]


def parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `compact` wrote, as JSON has them."""
    duckdb = require("duckdb", "sql")
    with errors(duckdb), duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT CAST(to_json(r) AS VARCHAR) FROM read_parquet({quoted(file)}) AS r"
        )
        while rows := found.fetchmany(1000):
            yield from (json.loads(text) for (text,) in rows)


@contextmanager
def errors(duckdb: Any) -> Iterator[None]:
    """What DuckDB says, in one line and as this package's kinds of error."""
    try:
        yield
    except duckdb.IOException as error:
        raise OSError(_line(error)) from None
    except duckdb.Error as error:
        raise ValueError(_line(error)) from None


def quoted(text: object) -> str:
    """A text as SQL quotes it."""
    return "'" + str(text).replace("'", "''") + "'"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
