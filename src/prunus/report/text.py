"""Tables as text that no terminal is too narrow for: no cell is ever cut off."""

import io
import shutil
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunus.files import Rows

__all__ = ["rendered", "table_text", "width_here"]

NARROWEST, WIDEST = 40, 110
EDGE = 3  # characters that a column takes beside its cells


def width_here() -> int:
    """Characters in a line: those of the terminal, or what COLUMNS says; 110 in a file."""
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def table_text(rows: Rows, *, title: str = "", width: int | None = None) -> str:
    """Records as a table, the first column its key.

    Where the columns do not fit side by side, text is broken between words; where that does not
    help, the columns are shared out among several tables, each with the key.

    Args:
        rows: with the same keys, shown by `str`.
        title: above it.
        width: characters in a line; those of `width_here` where None.
    """
    room = width_here() if width is None else width
    names = list(rows[0]) if rows else []
    cells = [[("" if row[n] is None else str(row[n])) for n in names] for row in rows]
    widths = [
        (
            max(_longest(texts), _longest([name])),
            max(_longest(texts) if all(map(_short, texts)) else _wordy(texts), _wordy([name])),
        )
        for name, texts in zip(names, zip(*cells, strict=True), strict=True)
    ]
    widths = [(most, min(least, room - EDGE - 1)) for most, least in widths]
    parts = [
        _table(names, cells, chosen, widths, room) for chosen in _shared_out(widths, room)
    ] or [Table()]
    return rendered(*([title] if title else []), *parts, width=room)


def _longest(texts: Sequence[str]) -> int:
    return max((len(line) for text in texts for line in text.splitlines()), default=0)


def _wordy(texts: Sequence[str]) -> int:
    """The longest word: what a column can be narrowed to."""
    return max((len(word) for text in texts for word in text.split()), default=0)


def _shared_out(widths: Sequence[tuple[int, int]], room: int) -> list[list[int]]:
    """Columns by table: as many side by side as fit with their text broken between words."""
    if not widths:
        return []
    key = widths[0][1] + EDGE + 1
    tables: list[list[int]] = [[0]]
    used = key
    for i, (_, least) in enumerate(widths[1:], start=1):
        if used + least + EDGE > room and len(tables[-1]) > 1:
            tables.append([0])
            used = key
        tables[-1].append(i)
        used += least + EDGE
    return tables


def _table(
    names: Sequence[str],
    cells: Sequence[Sequence[str]],
    chosen: Sequence[int],
    widths: Sequence[tuple[int, int]],
    room: int,
) -> Table:
    given = _given([widths[i] for i in chosen], room)
    table = Table()
    for i, own in zip(chosen, given, strict=True):
        numeric = i > 0 and all(_short(row[i]) for row in cells)
        table.add_column(
            names[i], justify="right" if numeric else "left", overflow="fold", min_width=own,
            max_width=own,
        )  # fmt: skip
    for row in cells:
        table.add_row(*(Text(row[i], overflow="fold") for i in chosen))  # no markup in cells
    return table


def _short(text: str) -> bool:
    """A number, a name, or two numbers with a sign between them: not to be broken."""
    return len(text) <= 24 and len(text.split()) <= 4


def _given(widths: Sequence[tuple[int, int]], room: int) -> list[int]:
    """How wide each column is: its text's length where there is room, else shares of the rest."""
    given = [least for _, least in widths]
    rest = room - 1 - sum(w + EDGE for w in given)
    while rest > 0:
        open_ = [i for i, (most, _) in enumerate(widths) if given[i] < most]
        if not open_:
            break
        # The column that lacks least first: then short ones are whole, and one long one is broken.
        i = min(open_, key=lambda j: widths[j][0] - given[j])
        step = min(rest, widths[i][0] - given[i])
        given[i] += step
        rest -= step
    return [max(w, 1) for w in given]


def rendered(*parts: Any, width: int | None = None) -> str:
    """Texts and tables below one another, as plain text."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width_here() if width is None else width,
        color_system=None,
        force_terminal=False,
    )
    for part in parts:
        console.print(part, markup=False, highlight=False, overflow="fold")
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())
