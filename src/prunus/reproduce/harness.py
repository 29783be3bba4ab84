"""Reproductions on the benchmark's harness: grids run into records, tables made of records."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.bench.grid import make_grid
from prunus.bench.record import Record
from prunus.bench.sweep import finished, run

__all__ = ["FailedRuns", "Harness", "carry_out"]


class FailedRuns(RuntimeError):
    """Cells of a reproduction failed; their tracebacks are in the records."""


@dataclass(frozen=True, kw_only=True)
class Harness:
    """How the runs of a reproduction are carried out; nothing of it decides a result.

    Attributes:
        records: folder of the records, where an interrupted reproduction goes on; None for one
            that is thrown away when all is done.
        executor: as in `prunus.bench.run`.
        workers: cells at once.
        address: of a running cluster.
    """

    records: Path | None = None
    executor: str = "local"
    workers: int | None = None
    address: str | None = None


def carry_out(
    grids: Sequence[Mapping[str, Any]],
    harness: Harness,
    *,
    data_dir: Path | None,
    progress: bool | None,
) -> list[Record]:
    """Run what is missing of the grids; the records of all their cells, in the grids' order.

    A cell that fails does not stop the others; cells that failed before are run again.

    Raises:
        FailedRuns: a cell failed; the message holds the last line of its traceback.
        FileNotFoundError: data are missing.
        OSError: the folder of records cannot be written; what it holds is whole.
    """
    checked = [make_grid(grid) for grid in grids]
    folder = harness.records or Path(tempfile.mkdtemp(prefix="prunus-"))
    cells = [
        cell
        for grid in checked
        for cell in run(
            grid,
            out=folder,
            executor=harness.executor,
            workers=harness.workers,
            address=harness.address,
            data_dir=data_dir,
            retry_failed=True,
            progress=progress,
        ).cells
    ]
    known = finished(folder)
    failed = [cell for cell in cells if known[cell.id].status != "done"]
    if failed:
        last = (known[failed[0].id].traceback.strip().splitlines() or ["no traceback"])[-1]
        raise FailedRuns(
            f"{len(failed)} of {len(cells)} runs of {checked[0].name} failed, the first is "
            f"`{failed[0]}`: {last.rstrip('.')}. Run the reproduction again to try them again; the "
            f"records in {folder} hold the tracebacks and what is done."
        )
    if harness.records is None:
        shutil.rmtree(folder)
    return [known[cell.id] for cell in cells]
