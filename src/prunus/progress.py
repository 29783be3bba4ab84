"""Progress bars on standard error: shown on a terminal, after two seconds, and silent elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from prunus.files import Patient

__all__ = ["Board", "progress_bar", "progress_board", "track"]

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds before a bar appears
BETWEEN = 15.0  # seconds between two lines where there is no terminal
WIDTH = 20  # characters of a board's bars


class Advance(Protocol):
    """Moves a bar on by some steps, and lets it say something else."""

    def __call__(self, steps: int, words: str | None = None) -> None: ...


@contextmanager
def progress_bar(
    description: str, total: int | None, *, progress: bool | None = None
) -> Iterator[Advance]:
    """A bar whose value is a function `advance(steps)`; a second argument changes what it says.

    Args:
        description: what is being done, as shown left of the bar.
        total: number of steps, or None where it is unknown.
        progress: True shows the bar at once, False never; None shows it on a terminal, once two
            seconds have passed.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    if not shown:
        yield lambda steps, words=None: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_console(),
        transient=True,
    )
    task = bar.add_task(description, total=total)
    begun = time.monotonic()
    started = False

    def advance(steps: int, words: str | None = None) -> None:
        nonlocal started
        if words is not None:
            bar.update(task, description=words)
        if not started and (progress or time.monotonic() - begun > PATIENCE):
            started = True
            bar.start()
        bar.advance(task, steps)

    try:
        yield advance
    finally:
        if started:
            bar.stop()


def _console() -> Console:
    """Standard error, which may go away (a closed terminal) without stopping the work."""
    return Console(file=cast(TextIO, Patient(sys.stderr)))


class Board:
    """One bar for all jobs, and below it one for each job under way; or lines, on no terminal.

    A job's bar fills with the seconds that are expected of it, or pulses where nothing is known.
    """

    def __init__(
        self, bars: Progress | None, description: str, total: int, lines: Patient | None = None
    ) -> None:
        self._bars = bars
        self._jobs: dict[int, TaskID] = {}
        self._all = None if bars is None else bars.add_task(description, total=total)
        self._lines = lines
        self._description, self._total, self._done = description, total, 0
        self._begun = self._said = time.monotonic()

    def begin(self, job: int, words: str, seconds: float | None) -> None:
        """Show a job that is under way, expected to take so many seconds."""
        if self._bars is not None:
            self._jobs[job] = self._bars.add_task(f"  {words}", total=seconds, job=True)

    def end(self, job: int, steps: int) -> None:
        """Take a job's bar away; it did so many steps of the whole."""
        self._done += steps
        if self._bars is not None and self._all is not None:
            self._bars.remove_task(self._jobs.pop(job))
            self._bars.advance(self._all, steps)
        now = time.monotonic()
        if self._lines is not None and now - self._said >= BETWEEN:
            self._said = now
            gone = now - self._begun
            left = gone / self._done * (self._total - self._done) if self._done else 0
            print(
                f"{self._description}: {self._done} of {self._total}, {_clock(gone)}, about "
                f"{_clock(left)} left",
                file=self._lines,
                flush=True,
            )


class _Words(ProgressColumn):
    def render(self, task: Task) -> Text:
        """What is done, cut where the terminal is narrow."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Bar(BarColumn):
    def render(self, task: Task) -> ProgressBar:
        """By steps; for a job by its seconds."""
        if "job" not in task.fields:
            return super().render(task)
        done = min(task.elapsed or 0.0, task.total or 0.0)
        return ProgressBar(total=task.total, completed=done, width=WIDTH, pulse=task.total is None)


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Steps done of all; for a job its seconds and those expected."""
        if "job" not in task.fields:
            return Text(f"{task.completed:.0f}/{task.total:.0f}")
        expected = "" if task.total is None else f" of about {task.total:.0f}"
        return Text(f"{task.elapsed or 0:.0f}{expected} s")


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        """For the whole: time gone and time left, from the pace so far."""
        if "job" in task.fields:
            return Text("")
        gone = _clock(task.elapsed or 0.0)
        rest = task.time_remaining
        return Text(gone if rest is None else f"{gone}, about {_clock(rest)} left")


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


@contextmanager
def progress_board(
    description: str, total: int, *, progress: bool | None = None
) -> Iterator[Board]:
    """A `Board` on standard error, gone at the end; on no terminal a line now and then.

    Args:
        description: what is being done, as shown left of the whole's bar.
        total: number of steps.
        progress: True shows it, False does not; None shows it on a terminal, and elsewhere (a log,
            a queue's output) a line every 15 seconds.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        lines = Patient(sys.stderr) if progress is None else None
        yield Board(None, description, total, lines)
        return
    kept = Column(no_wrap=True)
    columns = (_Words(), _Bar(WIDTH), _Count(table_column=kept), _Left(table_column=kept.copy()))
    pace = 3600.0  # seconds of history from which the time left is taken
    with Progress(*columns, console=_console(), transient=True, speed_estimate_period=pace) as bars:
        yield Board(bars, description, total)


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
