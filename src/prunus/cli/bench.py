"""`prunus bench`: a grid of task × recipe × density × schedule × seed, resumable and parallel."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.imports import look_here

__all__ = ["bench"]


def bench(
    config: Annotated[Path, typer.Argument(help="The grid, a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("records"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the grid: key=value, keys may be dotted."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and the estimated time.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="A dry run after one cell of each kind has been run, for its time."
        ),
    ] = False,
    executor: Annotated[str, typer.Option(help="local, ray or dask.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(help="Cells at once; left out: one, or all that the cluster takes."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Torch threads of each process.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of a running cluster.")] = None,
    part: Annotated[str, typer.Option(help="i/n: every n-th cell from the i-th on.")] = "1/1",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed cells again.")
    ] = False,
    retries: Annotated[int, typer.Option(help="Worker deaths that a cell may cause.")] = 3,
    cache: Annotated[Path | None, typer.Option(help="Folder of trained networks.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the data sets.")
    ] = None,
) -> None:
    """Run the cells of a grid that have no record yet; start it again to go on.

    Example: prunus bench grid.yaml --workers 2 --out records
    """
    from collections import Counter

    from prunus.bench.grid.config import cells, load_grid
    from prunus.bench.grid.estimate import estimate, guess
    from prunus.bench.grid.sweep import finished, run

    look_here()  # for the tasks' modules
    grid = load_grid(config, changes or ())
    first, slash, last = part.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal()):
        raise ValueError(f"--part must be i/n, such as 1/4, got {part!r}.")
    options: dict[str, Any] = {
        "out": out,
        "executor": executor,
        "workers": workers,
        "threads": threads,
        "address": address,
        "cache": cache,
        "data_dir": data_dir,
        "retry_failed": retry_failed,
        "retries": retries,
        "part": (int(first), int(last)),
    }
    if probe:
        run(grid, probe=True, **options)
    if dry_run or probe:
        every = cells(grid, threads=threads)
        known = finished(out)
        todo = [cell for cell in every if cell.id not in known]
        for cell in every:
            typer.echo(f"{known[cell.id].status if cell.id in known else 'to do':<7}{cell}")
        said = guess(estimate(todo, known.values(), cache), len(todo), workers or 1)
        typer.echo(f"{len(every)} cells, {len(todo)} to do: {said}")
        return
    result = run(grid, **options)
    typer.echo(
        f"{len(result.cells)} cells: {result.ran} run now, {result.done} done, "
        f"{result.failed} failed"
    )
    typer.echo(str(result.folder))
    odd = Counter(name for record in finished(out).values() for name in record.not_finite)
    if odd:
        named = ", ".join(f"{name} of {runs}" for name, runs in sorted(odd.items()))
        typer.echo(f"NaN or infinite are {named} runs in this folder.", err=True)
    if result.failed:
        typer.echo("Their tracebacks are in the records; --retry-failed runs them again.", err=True)
