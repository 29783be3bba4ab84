"""`prunus reproduce`: a figure or table of a paper, with our numbers beside the published ones."""

import os
from pathlib import Path
from typing import Annotated, Any

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
    executor: Annotated[str, typer.Option(help="local, ray or dask, as in bench.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Runs at once, as in bench.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running cluster.")] = None,
) -> None:
    """Print the table of a reproduction and save it with its figures.

    Those that `list` marks as resuming keep their records in OUT/records: start them again to go
    on, and share them among workers.

    Example: prunus reproduce list
    """
    from rich.table import Table

    from prunus.files import make_folder
    from prunus.reproduce import REPRODUCTIONS, reproduction, save
    from prunus.reproduce.harness import Harness

    if name == "list":
        _list()
        return
    function = reproduction(name)
    options: dict[str, Any] = {}
    if REPRODUCTIONS[name].resumes:
        options["harness"] = Harness(
            records=out / "records", executor=executor, workers=workers, address=address
        )
    elif (executor, workers, address) != ("local", None, None):
        raise ValueError(
            f"{name} runs in this process alone. Leave --executor, --workers and --address out."
        )
    make_folder(out)  # said now, not after hours
    if not os.access(out, os.W_OK):
        raise OSError(f"The output folder {out} cannot be written. Name another with --out.")
    result = function(
        scale="full" if full else "small", seed=seed, data_dir=data_dir, progress=None, **options
    )
    _print(f"{result.title}\n{result.paper}")
    for title, rows in result.shown().items():
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*row.values())
        _print(table)
    for line in result.conditions:
        _print(f"- {line}")
    for path in save(result, out):
        typer.echo(path)


def _list() -> None:
    """Every reproduction with what it needs."""
    from rich.table import Table

    from prunus.reproduce import REPRODUCTIONS

    table = Table()
    for title in ("name", "what", "data for --full", "processor time", "with --full", "resumes"):
        table.add_column(title)
    for name, known in sorted(REPRODUCTIONS.items()):
        resumes = "yes" if known.resumes else ""
        table.add_row(name, known.says, known.data, known.small, known.full or "–", resumes)
    _print(table)
    _print(
        "Processor times as measured on a busy machine of two cores, – where nobody has. Those "
        "that resume take --workers."
    )


def _print(what: object) -> None:
    """A text or a table; a file or a pipe has no edge to wrap at."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(what, markup=False)
