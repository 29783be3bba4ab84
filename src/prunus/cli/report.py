"""`prunus report`: tables and figures from records alone."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    records: Annotated[list[Path], typer.Argument(help=".jsonl files, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    metric: Annotated[
        str, typer.Option(help="The score to draw, as the records name it.")
    ] = "test_error",
) -> None:
    """Write one HTML page from the records of `prunus demo` or a benchmark.

    Example: prunus report demo-report/records.jsonl --out report.html
    """
    from prunus.bench.comparison import latency_rows, report_rows
    from prunus.bench.record import read_records
    from prunus.bench.tasks import TASKS
    from prunus.check import unknown
    from prunus.files import write_text
    from prunus.presets import recipes
    from prunus.report.comparison import comparison_page, network_section

    stored = read_records(records)
    for path in stored.torn:
        typer.echo(f"prunus: {path}: the last line is cut off and left out", err=True)
    done = [row for row in stored.rows if row.status == "done"]
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
        + (f", {len(stored.rows) - len(done)} failed." if len(stored.rows) > len(done) else "."),
        footer=f"Versions: {', '.join(sorted(versions))}.",
    )
    typer.echo(write_text(out, page))
