"""What the commands of `prunus theory at-init` take, say and save alike."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["DataSet", "Densities", "Out", "numbers", "said_plainly", "save", "widths", "with_error"]

DataSet = Annotated[
    str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or a .npz with x and y.")
]
Densities = Annotated[
    str, typer.Option(help="Fractions kept, with commas, or LOW:HIGH:COUNT on a log scale.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Stem of the files: STEM-table.json; .svg, .png, .csv, .json of figures."),
]


@contextmanager
def said_plainly() -> Iterator[None]:
    """Warnings as single lines on standard error at once, each text once."""
    said: set[str] = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in said:
            said.add(text)
            typer.echo(f"prunus: note: {text}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = say
        yield


def numbers(name: str, text: str) -> list[float]:
    """`0.1,0.5,1` or `0.01:1:20` (on a log scale) as numbers."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            first, last, n = float(low), float(high), int(count)
            if n < 2 or not (0 < first < math.inf and 0 < last < math.inf):
                raise ValueError
            step = (last / first) ** (1 / (n - 1))
            return [first * step**i for i in range(n - 1)] + [last]
        found = [float(part) for part in text.split(",") if part.strip()]
        if not all(math.isfinite(value) for value in found):
            raise ValueError
        return found
    except ValueError:
        raise ValueError(
            f"`{name}` must be finite numbers with commas, or LOW:HIGH:COUNT with LOW, HIGH > 0 "
            f"and COUNT >= 2, got {text!r}."
        ) from None


def widths(text: str) -> list[int]:
    """Hidden widths `100,50` as whole numbers."""
    found = numbers("model", text)
    if any(value != round(value) for value in found):
        raise ValueError(f"`model` must be whole numbers with commas, the widths, got {text!r}.")
    return [round(value) for value in found]


def with_error(value: float | None, error: float | None, sign: str) -> str:
    """A number with its standard error in brackets, where there is one."""
    if value is None:
        return ""
    return f"{value:{sign}.3f}" + ("" if error is None else f" ({error:.3f})")


def save(out: Path, rows: Any, chart: Any, records: list[dict[str, Any]]) -> None:
    """Write a table, where there is one, and a figure; their names are said."""
    from prunus.files import write_text
    from prunus.report.figure import beside, save_figure

    if rows is not None:
        typer.echo(write_text(beside(out, "-table.json"), json.dumps(rows, indent=1) + "\n"))
    for path in save_figure(chart, out, records):
        typer.echo(path)
