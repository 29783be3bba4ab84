"""`prunus bench`: a grid of task × recipe × density × schedule × seed, resumable and parallel."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.imports import Interrupted, look_here
from prunus.cli.options import DataDir

__all__ = ["EXAMPLE", "bench"]

EXAMPLE = """\
name: my first grid
tasks: [digits-mlp]                # prunus list tasks, or module:attribute of your own
recipes: [magnitude+ls, wanda+ls]  # prunus list recipes, or a Recipe(...) as Python
densities: [0.5, 0.2]              # kept / total
schedules: [none]                  # or retrain, or Iterative(rounds=3)
seeds: 2                           # how many, or a list of which
without: []                        # null baselines to leave out: random, random-layers,
                                   # small-dense, no-compensation, no-retraining
"""


def bench(
    config: Annotated[Path | None, typer.Argument(help="The grid, a YAML file.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("records"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the grid: key=value, keys may be dotted."),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a grid to begin with, and end.")
    ] = False,
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
    data_dir: DataDir = None,
) -> None:
    r"""Run the cells of a grid that have no record yet; start it again to go on.

    Each recipe comes with its null baselines, which runs of the same grid share: random masks of
    equal density, a small dense network, no compensation, no retraining. The exit code is 0 where
    all cells are done, and 1 where some have failed.

    Examples:

    prunus bench --example > grid.yaml

    prunus bench grid.yaml --dry-run

    prunus bench grid.yaml --workers 2 --out records

    A grid:

    tasks: \[digits-mlp]
    recipes: \[magnitude+ls, wanda+ls]
    densities: \[0.5, 0.2]
    schedules: \[none]
    seeds: 2
    """
    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    if config is None:
        raise ValueError(
            "Give the grid, a YAML file. `prunus bench --example` prints one to begin with."
        )
    from collections import Counter

    from prunus.bench.grid.config import cells, count_said
    from prunus.bench.grid.engines import EXECUTORS
    from prunus.bench.grid.estimate import estimate, guess
    from prunus.bench.grid.load import load_grid
    from prunus.bench.grid.sweep import finished, run
    from prunus.check import brief, unknown, whole

    look_here()  # for the tasks' modules
    grid = load_grid(config, changes or ())
    first, slash, last = part.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal()):
        raise ValueError(f"--part must be i/n, such as 1/4, got {part!r}.")
    whole("part", int(first), low=1, high=whole("part", int(last), low=1))
    if workers is not None:
        whole("workers", workers, low=1)
    whole("threads", threads, low=1)
    whole("retries", retries, low=0)
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
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
        typer.echo(f"{count_said(grid)}.")
        typer.echo(f"{len(every)} cells, {len(todo)} to do: {said}")
        return
    typer.echo(f"{count_said(grid)}.")
    try:
        result = run(grid, **options)
    except KeyboardInterrupt:
        known = finished(out)
        done = [cell for cell in cells(grid, threads=threads) if cell.id in known]
        raise Interrupted(
            f"interrupted: {len(done)} of {len(cells(grid, threads=threads))} cells are done in "
            f"{out}; the same command goes on."
        ) from None
    typer.echo(
        f"{len(result.cells)} cells: {result.ran} run now, {result.done} done, "
        f"{result.failed} failed"
    )
    typer.echo(str(result.folder))
    known = finished(out)
    odd = Counter(name for record in known.values() for name in record.not_finite)
    if odd:
        named = ", ".join(f"{name} of {runs}" for name, runs in sorted(odd.items()))
        typer.echo(f"NaN or infinite are {named} runs in this folder.", err=True)
    if result.failed:
        ends = Counter(
            (known[cell.id].traceback or "").strip().rpartition("\n")[2]
            for cell in result.cells
            if cell.id in known and known[cell.id].status == "failed"
        )
        for said, runs in ends.most_common(3):
            typer.echo(f"{runs} failed: {brief(said)}", err=True)
        typer.echo("Their tracebacks are in the records; --retry-failed runs them again.", err=True)
        raise typer.Exit(1)
