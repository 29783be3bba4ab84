"""Reproductions on the benchmark's harness: grids run into records, tables made of records."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
            that is thrown away at the end.
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

    Cells that failed before are run again.

    Raises:
        FailedRuns: a cell failed; the message holds the last line of its traceback.
        FileNotFoundError: data are missing.
        OSError: the folder of records cannot be written; what it holds is whole.
    """
    checked = [make_grid(grid) for grid in grids]
    with ExitStack() as stack:
        folder = harness.records or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found: dict[str, Record] = {}
        for grid in checked:
            swept = run(
                grid,
                out=folder,
                executor=harness.executor,
                workers=harness.workers,
                address=harness.address,
                data_dir=data_dir,
                retry_failed=True,
                progress=progress,
            )
            known = finished(folder)
            for cell in swept.cells:
                record = known[cell.id]
                if record.status != "done":
                    last = (record.traceback.strip().splitlines() or ["no traceback"])[-1].rstrip(
                        "."
                    )
                    raise FailedRuns(
                        f"{swept.failed} of {len(swept.cells)} runs of {grid.name} failed, the "
                        f"first is `{cell}`: {last}. Run the reproduction again to try them again; "
                        f"the records in {folder} hold the tracebacks and what is done."
                    )
                found[cell.id] = record
    return list(found.values())
