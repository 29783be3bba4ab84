"""Reproductions on the benchmark's harness: grids run into records, tables made of records."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import finished, run
from prunus.bench.record import Record
from prunus.files import Rows
from prunus.reproduce import Reproduction, Scale

__all__ = ["FailedRuns", "Harness", "carry_out", "of_grids", "with_interval"]


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
    grids: Rows,
    harness: Harness | None,
    *,
    data_dir: Path | None,
    progress: bool | None,
) -> list[Record]:
    """Run what is missing of the grids; the records of all their cells, in the grids' order.

    A cell that fails does not stop the others; cells that failed before are run again. Without a
    harness the cells run in this process, and their records are thrown away.

    Raises:
        FailedRuns: a cell failed; the message holds the last line of its traceback.
        FileNotFoundError: data are missing.
        OSError: the folder of records cannot be written; what it holds is whole.
    """
    harness = harness or Harness()
    checked = [make_grid(grid) for grid in grids]
    with ExitStack() as stack:
        folder = harness.records
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="prunus-"))
            stack.callback(shutil.rmtree, folder)
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
            stack.pop_all()  # what tells why stays, to be read
            last = (known[failed[0].id].traceback.strip().splitlines() or ["no traceback"])[-1]
            raise FailedRuns(
                f"{len(failed)} of {len(cells)} runs of {checked[0].name} failed, the first is "
                f"`{failed[0]}`: {last.rstrip('.')}. Run the reproduction again to try them again; "
                f"the records in {folder} hold the tracebacks and what is done."
            )
        return [known[cell.id] for cell in cells]


def of_grids(
    grids: Callable[[Scale, int], Rows],
    account: Callable[[Scale, Sequence[Record]], Reproduction],
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None,
) -> Reproduction:
    """What `account` makes of the records of `grids`, which are run where they are missing.

    Args:
        grids: of a scale and the first seed.
        account: tables and figures, of finished records alone.
        scale: "small" or "full".
        seed: of the first network.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.

    Raises:
        FailedRuns, FileNotFoundError, OSError: as `carry_out`.
    """
    records = carry_out(grids(scale, seed), harness, data_dir=data_dir, progress=progress)
    return account(scale, records)


def with_interval(mean: float, low: float | None = None, high: float | None = None) -> str:
    """`0.08 ± 0.07`: a mean with half its interval, to two places; the mean alone without one."""
    reach = "" if low is None or high is None else f" ± {(high - low) / 2:.2f}"
    return f"{round(mean, 2) + 0.0:.2f}{reach}"  # no −0.00
