"""Run a grid: what is missing, in any number of processes, until nothing is missing."""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.bench.data.cache import cache_folder
from prunus.bench.grid.cell import Cell
from prunus.bench.grid.config import Grid, cells
from prunus.bench.grid.engines import make_executor
from prunus.bench.grid.estimate import Times, probes
from prunus.bench.grid.executors import Ended, Executor, WorkerLost, closing
from prunus.bench.grid.load import load_grid, make_grid
from prunus.bench.grid.work import (
    Bench,
    StoreError,
    append,
    close_writers,
    failed,
    pinned,
    prepare,
    recorded,
    same_data,
    set_up,
    work,
    writable,
)
from prunus.bench.record import Record, read_records, record_files
from prunus.check import whole
from prunus.files import make_folder
from prunus.progress import progress_board

__all__ = ["Sweep", "finished", "run", "unique"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a run left behind.

    Attributes:
        folder: of the records.
        cells: of the grid, in order.
        done: how many of them have a finished record.
        failed: how many have a failed one.
        ran: how many were run now.
        lost: how often a worker died.
    """

    folder: Path
    cells: Sequence[Cell]
    done: int
    failed: int
    ran: int
    lost: int


def run(
    grid: Grid | Mapping[str, Any] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    executor: str | Executor = "local",
    workers: int | None = None,
    threads: int = 1,
    address: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
    retries: int = 3,
    part: tuple[int, int] = (1, 1),
    probe: bool = False,
    progress: bool | None = None,
) -> Sweep:
    """Run the cells of a grid that have no record yet.

    Every worker appends to a file of its own in `out`. Stop the run in any way and start it again:
    what is on disk is kept and the rest is done. A cell that raises is recorded with its traceback
    and does not stop the others.

    Args:
        grid: a `Grid`, a mapping with its fields, or the path of a YAML file.
        out: folder of the records.
        executor: "local", "ray" or "dask", or an `Executor`.
        workers: cells at once; None for one, or for as many as the cluster at `address` takes.
            One local worker is this process itself.
        threads: torch threads of each; part of a cell's identity, since sums depend on it.
        address: of a running cluster.
        cache: folder of trained networks.
        data_dir: folder with the data sets; it stands before the grid's own.
        retry_failed: run cells again whose record says failed.
        retries: how often a cell may take its worker down before it is recorded as failed.
        part: (i, n) does every n-th cell from the i-th on, so that n machines share one folder.
        probe: run just one cell of each task, recipe and schedule that has none yet, so that the
            time of the rest can be estimated.
        progress: as in `progress_board`.

    Raises:
        ValueError: the grid has mistakes; all are named. Or `out` holds records of other data.
        FileNotFoundError: data are missing.
        OSError: the folder cannot be written, or the disk is full; earlier records are whole.
    """
    if isinstance(grid, str | os.PathLike):
        grid = load_grid(grid)
    elif isinstance(grid, Mapping):
        grid = make_grid(grid)
    whole("retries", retries, low=0)
    place = whole("part", part[0], low=1, high=whole("part", part[1], low=1))
    folder = data_dir if data_dir is not None else grid.data_dir
    every = cells(grid, threads=threads)
    mine = every[place - 1 :: part[1]]
    if probe:
        known = finished(out)
        mine = probes([cell for cell in mine if cell.id not in known], known.values())
    bench = Bench(
        out=writable(out),
        cache=_made(cache_folder(None if cache is None else Path(cache)).absolute()),
        data_dir=None if folder is None else os.fspath(folder),
        paths=tuple(dict.fromkeys([os.getcwd(), *filter(None, sys.path)])),
        threads=threads,
        parent=os.getpid() if executor == "local" else 0,
        retry_failed=retry_failed,
    )
    with pinned(threads):
        return _sweep(bench, grid.tasks, mine, executor, workers, address, retries, progress)


def _made(cache: Path) -> str:
    """The folder of trained networks, which may be one that can only be read."""
    try:
        return str(make_folder(cache))
    except OSError as error:
        raise OSError(
            f"The folder of trained networks {cache} cannot be made ({error.strerror or error}). "
            f"Name another with --cache."
        ) from None


def _sweep(
    bench: Bench,
    tasks: Sequence[str],
    mine: Sequence[Cell],
    executor: str | Executor,
    workers: int | None,
    address: str | None,
    retries: int,
    progress: bool | None,
) -> Sweep:
    set_up(bench)
    known = finished(bench.out)
    for name in tasks:
        same_data(bench, name, known.values())
    missing = [
        cell
        for cell in mine
        if cell.id not in known or (bench.retry_failed and known[cell.id].status == "failed")
    ]
    lost = 0
    if missing:
        made = (
            make_executor(
                executor, workers=workers, threads=bench.threads, address=address, retries=retries
            )
            if isinstance(executor, str)
            else executor
        )
        try:
            with closing(made):
                _train(bench, made, missing, progress)
                lost = _run(bench, made, missing, Times(known.values()), retries, progress)
        finally:
            close_writers()
    known = finished(bench.out)
    states = Counter(known[cell.id].status for cell in mine if cell.id in known)
    return Sweep(
        folder=Path(bench.out),
        cells=mine,
        done=states["done"],
        failed=states["failed"],
        ran=len(missing),
        lost=lost,
    )


def unique(records: Sequence[Record]) -> list[Record]:
    """One record per cell: a finished one before a failed one, the first of several.

    Runs are deterministic, so several finished records of one cell say the same.
    """
    best: dict[str, Record] = {}
    for record in records:
        known = best.get(record.id)
        if known is None or (known.status != "done" and record.status == "done"):
            best[record.id] = record
    return list(best.values())


def finished(out: str | os.PathLike[str]) -> dict[str, Record]:
    """{identity: record} of a folder, which may be empty."""
    try:
        files = record_files(out)
    except FileNotFoundError:
        return {}
    return {record.id: record for record in unique(read_records(files).rows)}


def _train(
    bench: Bench, executor: Executor, missing: Sequence[Cell], progress: bool | None
) -> None:
    """Every dense network once, before the cells that share it."""
    todo = deque(dict.fromkeys((cell.task, cell.model_seed) for cell in missing))
    again: Counter[tuple[str, int]] = Counter()
    flight: dict[int, tuple[str, int]] = {}

    def fill() -> None:
        while todo and len(flight) < executor.slots:
            job = todo.popleft()
            number = executor.submit(prepare, bench, *job)
            flight[number] = job
            board.begin(number, f"{job[0]}  seed {job[1]}", None)

    with progress_board("dense networks", len(todo), progress=progress) as board:
        fill()
        for ended in executor.as_completed():
            job = flight.pop(ended.job)
            lost = isinstance(ended.error, WorkerLost) and again[job] < 10
            if lost:
                again[job] += 1
                todo.append(job)
            # any other error comes up again in the cells, which record it
            board.end(ended.job, 0 if lost else 1)
            fill()


def _run(
    bench: Bench,
    executor: Executor,
    missing: Sequence[Cell],
    times: Times,
    retries: int,
    progress: bool | None,
) -> int:
    """All missing cells; how often a worker died.

    A death is blamed on every cell under way. Suspects wait for the end and then run alone, so
    that a cell which kills its worker takes no other with it.
    """
    todo, suspects = deque(missing), deque[Cell]()
    deaths: Counter[str] = Counter()
    flight: dict[int, Cell] = {}
    begun: dict[int, float] = {}
    lost = 0

    def begin(cell: Cell) -> None:
        number = executor.submit(work, bench, cell)
        flight[number] = cell
        begun[number] = time.monotonic()
        board.begin(number, str(cell), times.expected(cell))

    def fill() -> None:
        while todo and len(flight) < executor.slots:
            begin(todo.popleft())
        if suspects and not flight and not todo:
            begin(suspects.popleft())

    def settle(ended: Ended) -> int:
        nonlocal lost
        cell = flight.pop(ended.job)
        if isinstance(ended.error, WorkerLost):
            lost += ended.error.deaths
            if recorded(bench, cell):
                return 1  # it died after writing
            deaths[cell.id] += ended.error.deaths
            if deaths[cell.id] <= retries:
                suspects.append(cell)
                return 0
            reason = f"The worker process died {deaths[cell.id]} times. {ended.error}"
            append(bench, failed(cell, reason))
        elif isinstance(ended.error, StoreError):
            raise ended.error
        elif ended.error is not None:
            reason = f"{type(ended.error).__name__}: {ended.error}"
            append(bench, failed(cell, reason))
        else:
            seconds = time.monotonic() - begun[ended.job]
            times.add(cell.task, cell.schedule, cell.label, seconds)
        return 1

    with progress_board("cells", len(missing), progress=progress) as board:
        fill()
        for ended in executor.as_completed():
            board.end(ended.job, settle(ended))
            fill()
    return lost
