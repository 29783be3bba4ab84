"""`prunus report`: tables and figures from records alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["report"]


def report(
    records: Annotated[
        list[Path], typer.Argument(help=".jsonl or .parquet files, or folders that hold some.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    metric: Annotated[
        str, typer.Option(help="The score to draw, as the records name it.")
    ] = "test_error",
    title: Annotated[str, typer.Option(help="Heads the page of a benchmark.")] = "Benchmark",
    static: Annotated[
        Path | None,
        typer.Option(help="Folder for a benchmark's CSV, Markdown, LaTeX, SVG and PNG files."),
    ] = None,
    interval: Annotated[str, typer.Option(help="Of means: t or bootstrap.")] = "t",
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    sql: Annotated[
        str | None,
        typer.Option(help="Print what a statement on the table `records` gives, as CSV; no page."),
    ] = None,
    compact: Annotated[
        Path | None,
        typer.Option(help="Write the records to one Parquet file, each cell once; no page."),
    ] = None,
) -> None:
    """Write one HTML page from the records of `prunus bench` or `prunus demo`.

    Example: prunus report demo-report/records.jsonl --out report.html
    """
    if sql is not None or compact is not None:
        _database(records, sql, compact)
        return
    from prunus.bench.record import read_records

    stored = read_records(records)
    for path in stored.torn:
        typer.echo(f"prunus: {path}: the last line is cut off and left out", err=True)
    if any("baselines" in row.extra for row in stored.rows):
        _benchmark(stored.rows, out, metric, title, static, interval, level)
        return
    if static is not None:
        raise ValueError("--static is for the records of `prunus bench`; these hold no grid.")
    _comparison(stored.rows, records, out, metric)


def _database(records: Sequence[Path], sql: str | None, packed: Path | None) -> None:
    from prunus.bench.record.sql import compact, query
    from prunus.report.page import table_csv

    if sql is not None and (rows := query(records, sql)):
        typer.echo(table_csv(rows), nl=False)
    if packed is not None:
        count = compact(records, packed)
        typer.echo(f"{packed}: {count} records", err=True)


def _benchmark(
    rows: Sequence[Any],
    out: Path,
    metric: str,
    title: str,
    static: Path | None,
    interval: str,
    level: float,
) -> None:
    from prunus.bench.grid.sweep import unique
    from prunus.bench.statistics.tables import tables
    from prunus.check import fraction, unknown
    from prunus.files import write_text
    from prunus.report.grid import grid_page, write_static

    fraction("level", level)
    if interval not in ("t", "bootstrap"):
        raise unknown("interval", interval, ("t", "bootstrap"))
    cells = unique(rows)
    found = tables(cells, metric, level=level, interval=interval)
    failed = sum(row.status == "failed" for row in cells)
    lead = f"{len(cells) - failed} finished runs, {failed} failed."
    typer.echo(write_text(out, grid_page(found, title=title, lead=lead)))
    if static is not None:
        for path in write_static(found, static):
            typer.echo(path)


def _comparison(rows: Sequence[Any], records: Sequence[Path], out: Path, metric: str) -> None:
    from prunus.bench.data.tasks import TASKS
    from prunus.bench.statistics.comparison import latency_rows, report_rows
    from prunus.check import unknown
    from prunus.files import write_text
    from prunus.presets import recipes
    from prunus.report.comparison import comparison_page, network_section

    done = [row for row in rows if row.status == "done"]
    if not done:
        raise ValueError(f"{', '.join(map(str, records))}: no finished run to draw.")
    known = {name for row in done for name in row.after}
    if metric not in known:
        raise unknown("metric", metric, known)
    sections = []
    for task in dict.fromkeys(row.task for row in done):
        own = [row for row in done if row.task == task]
        sections.append(
            network_section(
                report_rows(own, metric),
                latency_rows(own),
                metric=metric,
                prefix=f"{task.replace(':', '.')}-",
                title=TASKS[task].title if task in TASKS else task,
            )
        )
    used = [name for name in dict.fromkeys(row.recipe for row in done) if name in recipes]
    versions = {f"{key} {value}" for row in done for key, value in row.versions.items()}
    page = comparison_page(
        sections,
        used,
        title="Pruning runs",
        lead=f"{len(done)} finished runs"
        + (f", {len(rows) - len(done)} failed." if len(rows) > len(done) else "."),
        footer=f"Versions: {', '.join(sorted(versions))}.",
    )
    typer.echo(write_text(out, page))
