"""Records as a table of DuckDB: questions in SQL, and one Parquet file instead of many lines."""

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.bench.record.parquet import errors, quoted
from prunus.bench.record.row import Record
from prunus.bench.record.store import record_files
from prunus.files import Row, write_bytes
from prunus.report.figure import require

__all__ = ["compact", "query"]

Places = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
SCORES = "MAP(VARCHAR, DOUBLE)"
PAIR = "BIGINT[]"
TYPES = {
    "format": "BIGINT",
    "seed": "BIGINT",
    "model_seed": "BIGINT",
    "peak_memory": "BIGINT",
    "density_asked": "DOUBLE",
    "density": "DOUBLE",
    "density_whole": "DOUBLE",
    "seconds": "DOUBLE",
    **dict.fromkeys(("before", "after", "retrained", "layer_error", "layer_density"), SCORES),
    **dict.fromkeys(("parameters", "macs", "bytes"), PAIR),
    **dict.fromkeys(("latency", "certificate", "host", "extra"), "JSON"),
    "versions": "MAP(VARCHAR, VARCHAR)",
}  # every other field of a record is text


def query(places: Places, sql: str) -> list[Row]:
    """The rows that an SQL statement gives; its table is `records`, each cell once.

    Scores are maps (`after['test_error']`; `final` is `retrained`, else `after`), `parameters`,
    `macs` and `bytes` lists of the dense and the pruned number, and `host`, `latency`,
    `certificate` and `extra` JSON (`extra ->> '$.role'`).

    Args:
        places: as in `read_records`.
        sql: one statement in DuckDB's SQL.

    Raises:
        ImportError: DuckDB is not installed; the message names the extra.
        FileNotFoundError: no records there.
        ValueError: a damaged line, or a statement that DuckDB refuses.

    Example:
        >>> query("records", "SELECT recipe, avg(final['test_error']) AS e FROM records GROUP BY 1")
        ... # doctest: +SKIP
    """
    if not sql.strip():
        raise ValueError("`sql` must be a statement, such as SELECT * FROM records, got none.")
    with _table(places) as connection:
        found = connection.execute(sql)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def compact(places: Places, path: str | os.PathLike[str]) -> int:
    """Write all records, each cell once, to one Parquet file; how many there are.

    `read_records` and `prunus report` read it like the lines it came from. The file appears whole.

    Raises:
        ImportError: DuckDB is not installed; the message names the extra.
        FileNotFoundError: no records there.
        ValueError: a damaged line, or a name that does not end in .parquet.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".parquet":
        raise ValueError(f"`path` must end in .parquet, got {str(path)!r}. Rename it.")
    with tempfile.TemporaryDirectory() as scratch, _table(places) as connection:
        made = Path(scratch) / target.name
        connection.execute(
            f"COPY (SELECT * EXCLUDE (final) FROM records) TO {quoted(made)} "
            f"(FORMAT parquet, COMPRESSION zstd)"
        )
        (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
        write_bytes(target, made.read_bytes())
    return int(count)


@contextmanager
def _table(places: Places) -> Iterator[Any]:
    """A connection with the table `records`: one row per cell, a finished one before a failed."""
    duckdb = require("duckdb", "sql")
    files = record_files(places)
    names = ["format", *Record.__dataclass_fields__]
    columns = ", ".join(f"{quoted(n)}: '{TYPES.get(n, 'VARCHAR')}'" for n in names)
    with tempfile.TemporaryDirectory() as scratch, errors(duckdb):
        lines = [_whole(file, Path(scratch)) for file in files if file.suffix != ".parquet"]
        packed = [file for file in files if file.suffix == ".parquet"]
        parts = []
        if lines:
            parts.append(
                f"SELECT * FROM read_json([{', '.join(map(quoted, lines))}], "
                f"format = 'newline_delimited', columns = {{{columns}}}, "
                f"maximum_object_size = {1 << 30})"
            )
        if packed:
            parts.append(f"SELECT * FROM read_parquet([{', '.join(map(quoted, packed))}])")
        with duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.execute(
                f"CREATE TABLE records AS WITH every AS ({' UNION ALL BY NAME '.join(parts)}), "
                f"placed AS (SELECT *, row_number() OVER () AS place FROM every) "
                f"SELECT * EXCLUDE (place), coalesce(retrained, after) AS final FROM placed "
                f"QUALIFY row_number() OVER "
                f"(PARTITION BY id ORDER BY status <> 'done', place) = 1 ORDER BY place"
            )
            yield connection


def _whole(file: Path, scratch: Path) -> Path:
    """The file, or a copy of its whole lines where a kill cut the last one off."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        if stream.read() in (b"", b"\n"):
            return file
        stream.seek(0)
        text = stream.read()
    copy = scratch / f"{uuid.uuid4().hex}.jsonl"
    copy.write_bytes(text[: text.rfind(b"\n") + 1])
    return copy
