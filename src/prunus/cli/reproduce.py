"""`prunus reproduce`: a figure or table of a paper, with our numbers beside the published ones."""

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["reproduce"]

WIDE = 400


def reproduce(
    name: Annotated[str, typer.Argument(help="The reproduction, or `list`.")] = "list",
    out: Annotated[Path, typer.Option(help="Folder for the table and the figures.")] = Path("out"),
    full: Annotated[
        bool, typer.Option("--full", help="Published sizes, not the small ones.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the data sets.")
    ] = None,
) -> None:
    """Print the table of a reproduction and save it with its figures.

    Example: prunus reproduce list
    """
    from rich.console import Console
    from rich.table import Table

    from prunus.reproduce import REPRODUCTIONS, reproduction, save

    if name == "list":
        for known in sorted(REPRODUCTIONS):
            typer.echo(known)
        return
    function = reproduction(name)
    out.mkdir(parents=True, exist_ok=True)  # said now, not after hours
    if not os.access(out, os.W_OK):
        raise OSError(f"The output folder {out} cannot be written. Name another with --out.")
    result = function(
        scale="full" if full else "small", seed=seed, data_dir=data_dir, progress=None
    )
    table = Table(title=f"{result.title}\n{result.paper}")
    columns = list(result.rows[0])
    for column in columns:
        table.add_column(column)
    for row in result.rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # a file or a pipe has no edge to wrap at
    console.print(table)
    for line in result.conditions:
        console.print(f"- {line}", markup=False)
    for path in save(result, out):
        typer.echo(path)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
