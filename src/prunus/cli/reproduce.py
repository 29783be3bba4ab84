"""`prunus reproduce`: a figure or table of a paper, with our numbers beside the published ones."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.options import DataDir

__all__ = ["reproduce"]

WIDE = 400


def reproduce(
    name: Annotated[str, typer.Argument(help="The reproduction, or `list`.")] = "list",
    out: Annotated[Path, typer.Option(help="Folder for the table and the figures.")] = Path("out"),
    full: Annotated[
        bool, typer.Option("--full", help="Published sizes, not the small ones.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    data_dir: DataDir = None,
    executor: Annotated[str, typer.Option(help="local, ray or dask, as in bench.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Runs at once, as in bench.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running cluster.")] = None,
) -> None:
    """Print the table of a reproduction and save it with its figures.

    Those that `list` marks as resuming keep their records in OUT/records: start them again to go
    on, and share them among workers.

    Example: prunus reproduce list
    """
    from prunus.files import make_folder
    from prunus.report.text import table_text
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
        typer.echo(table_text(rows, title=title, width=_width()))
    for line in result.conditions:
        _print(f"- {line}")
    for path in save(result, out):
        typer.echo(path)


def _list() -> None:
    """Every reproduction with what it needs."""
    from prunus.report.text import table_text
    from prunus.reproduce import REPRODUCTIONS

    rows = [
        {
            "name": name,
            "what": known.says,
            "data for --full": known.data,
            "processor time": known.small,
            "with --full": known.full or "–",
            "resumes": "yes" if known.resumes else "",
        }
        for name, known in sorted(REPRODUCTIONS.items())
    ]
    typer.echo(table_text(rows, width=_width()))
    _print(
        "Processor times as measured on a busy machine of two cores, – where nobody has. Those "
        "that resume take --workers."
    )


def _width() -> int:
    """A file or a pipe has no edge to wrap at, unless COLUMNS says so."""
    from prunus.report.text import width_here

    return width_here() if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE


def _print(text: str) -> None:
    from prunus.report.text import rendered

    typer.echo(rendered(text, width=_width()))
