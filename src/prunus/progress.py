"""Progress bars on standard error: shown on a terminal, after two seconds, and silent elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["progress_bar", "track"]

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds before a bar appears


@contextmanager
def progress_bar(
    description: str, total: int | None, *, progress: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar whose value is a function `advance(steps)`.

    Args:
        description: what is being done, as shown left of the bar.
        total: number of steps, or None where it is unknown.
        progress: True shows the bar at once, False never; None shows it on a terminal, once two
            seconds have passed.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    if not shown:
        yield lambda steps: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(description, total=total)
    begun = time.monotonic()
    started = False

    def advance(steps: int) -> None:
        nonlocal started
        if not started and (progress or time.monotonic() - begun > PATIENCE):
            started = True
            bar.start()
        bar.advance(task, steps)

    try:
        yield advance
    finally:
        if started:
            bar.stop()


def track(
    items: Iterable[Item],
    description: str,
    *,
    total: int | None = None,
    progress: bool | None = None,
) -> Iterator[Item]:
    """Yield `items` while a bar counts them; see `progress_bar`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, progress=progress) as advance:
        for item in items:
            yield item
            advance(1)
