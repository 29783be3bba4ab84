"""What a worker does: train a dense network once, run one cell, write its record."""

import contextlib
import functools
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from prunus.bench.grid.budgets import density_asked
from prunus.bench.grid.cell import Cell, baselines, recipe_of
from prunus.bench.grid.roles import ROLES
from prunus.bench.grid.supplies import Bench, data_of, dense_of
from prunus.bench.record import Record, RecordIndex, RecordWriter
from prunus.host import host_facts, versions
from prunus.threads import pinned

__all__ = [
    "Bench",
    "StoreError",
    "append",
    "close_writers",
    "failed",
    "pinned",
    "prepare",
    "recorded",
    "run_cell",
    "same_data",
    "set_up",
    "work",
    "writable",
]


_alone = threading.Lock()  # a cluster's worker may have threads; cells set the process's state


class StoreError(OSError):
    """A record could not be written; going on would lose results."""


@functools.cache
def _pin(process: int, threads: int) -> None:
    """Pin a worker for good, once."""
    from threadpoolctl import threadpool_limits

    del process
    threadpool_limits(limits=threads)


def set_up(bench: Bench) -> None:
    """Make a process ready: its threads pinned, the tasks' modules in reach."""
    _pin(os.getpid(), bench.threads)
    torch.set_num_threads(bench.threads)
    for path in bench.paths:
        if path not in sys.path:
            sys.path.append(path)


def prepare(bench: Bench, name: str, seed: int) -> float:
    """Train the dense network of a task and seed unless the cache has it; seconds it took."""
    with _alone:
        set_up(bench)
        return dense_of(name, seed, bench.data_dir, bench.cache).seconds


def work(bench: Bench, cell: Cell) -> str:
    """Run a cell and write its record, done or failed; its status.

    A cell that is recorded already is left alone: an engine starts a job again when its worker is
    lost, which may have written before, or may live on behind a broken connection.

    Raises:
        StoreError: the record could not be written.
    """
    with _alone:
        set_up(bench)
        status = recorded(bench, cell)
        if status is None:
            record = run_cell(bench, cell)
            status = recorded(bench, cell)
            if status is None:
                append(bench, record)
                status = record.status
        return status


_indices: dict[str, RecordIndex] = {}


def recorded(bench: Bench, cell: Cell) -> str | None:
    """The status of a cell's record; None where there is none, or a failed one to be mended."""
    index = _indices.setdefault(bench.out, RecordIndex(bench.out))
    status = index.status(cell.id)
    return None if status == "failed" and bench.retry_failed else status


def run_cell(bench: Bench, cell: Cell) -> Record:
    """The record of a cell; an error becomes a record with its traceback."""
    begun = time.perf_counter()
    _forget_peak()
    record = _blank(cell)
    try:
        record = ROLES[cell.role](bench, cell, record)
        data = data_of(cell.task, bench.data_dir)
        facts = {
            "fingerprint": data.fingerprint,
            "train": len(data.x_train),
            "test": len(data.x_test),
        }
        record = replace(record, extra={**record.extra, "data_set": facts})
    except Exception:
        record = replace(record, status="failed", traceback=traceback.format_exc())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return replace(
        record,
        seconds=time.perf_counter() - begun,
        peak_memory=peak * (1 if sys.platform == "darwin" else 1024),
    )


def _forget_peak() -> None:
    """Let the process's peak memory begin anew, where the kernel can do so (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def failed(cell: Cell, reason: str) -> Record:
    """The record of a cell that could not say itself what went wrong."""
    return replace(_blank(cell), status="failed", traceback=reason)


def _blank(cell: Cell) -> Record:
    """What is known of a cell before it runs."""
    nulls = baselines(cell) if cell.role == "prune" else {}
    return Record(
        id=cell.id,
        task=cell.task,
        recipe=cell.label,
        recipe_repr=cell.recipe,
        recipe_hash=recipe_of(cell.recipe).digest,
        seed=cell.seed,
        model_seed=cell.model_seed,
        density_asked=density_asked(cell.budget),
        density=None,
        budget=cell.budget,
        schedule=cell.schedule,
        versions=versions(),
        host=host_facts(),
        extra={
            "role": cell.role,
            "baselines": {name: null.id for name, null in nulls.items()},
            "settings": asdict(cell.settings),
        },
    )


_writers: dict[tuple[str, int], RecordWriter] = {}


def append(bench: Bench, record: Record) -> None:
    """Append to this process's own file; a worker whose parent is gone writes nothing more."""
    if bench.parent and os.getpid() != bench.parent and os.getppid() != bench.parent:
        os._exit(1)  # another run may be doing this cell by now
    key = (os.path.abspath(bench.out), os.getpid())
    try:
        if key not in _writers:
            _writers[key] = RecordWriter(bench.out)
        _writers[key].append(record)
    except OSError as error:
        raise StoreError(
            f"The record of {record.recipe} on {record.task} could not be written to {bench.out} "
            f"({error.strerror or error}). Earlier records are whole; make room and run again."
        ) from None


def close_writers() -> None:
    """Close the files of this process."""
    for key in [key for key in _writers if key[1] == os.getpid()]:
        _writers.pop(key).close()


def same_data(bench: Bench, name: str, known: Iterable[Record]) -> None:
    """Load a task's data; what is missing, or not what the records come from, is said at once.

    Raises:
        FileNotFoundError: no data.
        ValueError: a record of this task was made with other data.
    """
    own = data_of(name, bench.data_dir).fingerprint
    for record in known:
        other = record.extra.get("data_set", {}).get("fingerprint", own)
        if record.task == name and other != own:
            raise ValueError(
                f"The records in {bench.out} were made with other data for {name} (fingerprint "
                f"{other}, here {own}). Name another folder for these data."
            )


def writable(out: str | os.PathLike[str]) -> str:
    """An absolute folder that can be written, made if missing.

    Raises:
        OSError: it cannot; the message names it.
    """
    path = Path(out).absolute()
    try:
        with RecordWriter(path):
            pass
    except OSError as error:
        raise OSError(
            f"The output folder {path} cannot be written ({error.strerror or error}). "
            f"Name another with --out."
        ) from None
    return str(path)
