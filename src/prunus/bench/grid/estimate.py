"""How long the cells of a grid will take, by what like cells and trainings took."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunus.bench.data.cache import trainings
from prunus.bench.data.tasks import task
from prunus.bench.grid.cell import Cell
from prunus.bench.record import Record

__all__ = ["Estimate", "Times", "estimate", "guess", "probes"]


class Times:
    """Seconds that like cells took: same task, recipe and schedule, else task and schedule."""

    def __init__(self, known: Iterable[Record] = ()) -> None:
        self._times: dict[tuple[str, ...], list[float]] = {}
        for record in known:
            if record.status == "done" and record.seconds is not None:
                self.add(record.task, record.schedule, record.recipe, record.seconds)

    def add(self, task: str, schedule: str, recipe: str, seconds: float) -> None:
        """One more cell that is done."""
        for key in ((task, schedule, recipe), (task, schedule)):
            self._times.setdefault(key, []).append(seconds)

    def expected(self, cell: Cell) -> float | None:
        """The median over like cells; None without any."""
        near = self._times.get((cell.task, cell.schedule, cell.label)) or self._times.get(
            (cell.task, cell.schedule)
        )
        return statistics.median(near) if near else None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The work that is left of a grid.

    Attributes:
        seconds: of the cells that have like records.
        blank: cells without.
        networks: dense networks that the cache lacks.
        training: seconds to train those whose task has others in the cache.
        untimed: networks of tasks that have none there.
    """

    seconds: float
    blank: int
    networks: int
    training: float
    untimed: int


def estimate(todo: Sequence[Cell], known: Iterable[Record], cache: Path | None = None) -> Estimate:
    """The work in `todo`, by the median over records of like cells and over cached trainings.

    Like cells share task, recipe and schedule, else task and schedule. Whether a network is cached
    is judged by its task, seed and versions; the data are not read.

    Args:
        todo: cells without a record.
        known: records, of this grid or another.
        cache: folder of trained networks; None for the usual one.
    """
    times = Times(known)
    expected = [times.expected(cell) for cell in todo]
    training, networks, untimed = 0.0, 0, 0
    for name in dict.fromkeys(cell.task for cell in todo):
        taken, seeds = trainings(task(name), cache)
        lacking = len({cell.model_seed for cell in todo if cell.task == name} - seeds)
        networks += lacking
        if taken:
            training += lacking * statistics.median(taken)
        else:
            untimed += lacking
    return Estimate(
        seconds=sum(e for e in expected if e is not None),
        blank=expected.count(None),
        networks=networks,
        training=training,
        untimed=untimed,
    )


def probes(todo: Sequence[Cell], known: Iterable[Record]) -> list[Cell]:
    """The first cell of each task, recipe and schedule that has no record, done or failed."""
    tried = {(record.task, record.schedule, record.recipe) for record in known}
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in todo:
        kind = (cell.task, cell.schedule, cell.label)
        if kind not in tried:
            first.setdefault(kind, cell)
    return list(first.values())


def guess(left: Estimate, cells: int, workers: int) -> str:
    """The time that is left, in words, and what is not known of it."""
    each = f" with {workers} worker{'s' if workers > 1 else ''}"
    if cells and left.blank == cells:
        said = "time unknown until a first cell has run; --probe runs one of each kind"
    else:
        said = f"about {_time(left.seconds / workers)}{each}"
        if left.blank:
            said += f" for those with like records, {left.blank} without"
    if left.networks > left.untimed:
        timed = left.networks - left.untimed
        said += f"; before, about {_time(left.training / workers)} to train {timed} dense networks"
    if left.untimed:
        said += f"; {left.untimed} dense networks to train, time unknown"
    return said


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
