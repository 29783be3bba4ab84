"""Blocks of a folder pruned apart from one another, by workers, where their inputs are dense."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prunus.calibration.batches import call, to_device
from prunus.folder.checkpoint import open_checkpoint
from prunus.folder.engines import Engine, told
from prunus.folder.hidden import Batch
from prunus.folder.journal import Journal
from prunus.folder.loop import Walk, one_block
from prunus.folder.needs import Needs
from prunus.folder.order import Order
from prunus.folder.ranks import Ranks
from prunus.folder.result import BlockResult
from prunus.folder.skeleton import Skeleton
from prunus.folder.streams import Streams
from prunus.host import few_leftovers, return_memory
from prunus.progress import progress_bar

__all__ = ["go_apart"]

log = logging.getLogger("prunus")


def go_apart(
    walk: Walk,
    journal: Journal,
    engine: Engine,
    needs: Needs,
    progress: bool | None,
) -> list[BlockResult]:
    """Let the dense network go by once, its streams all kept, and hand out the blocks.

    Args:
        walk: what stays the same.
        journal: notes each block that is done, in whatever order.
        engine: runs the jobs; each reads and writes the folder.
        needs: as said before the start.
        progress: as in `progress_bar`.

    Returns:
        the accounts of all blocks.

    Raises:
        RuntimeError: a worker was lost; the same call goes on.
    """
    skeleton, streams = walk.skeleton, walk.streams
    words = f"pruning blocks by {walk.order.name} ({needs.short()})"
    log.info("%s: %s", words, needs.summary())
    total = skeleton.blocks
    with few_leftovers(), progress_bar(words, total, progress=progress) as bar:
        for index in range(total - 1 if streams.batches else 0):
            if not streams.path(index + 1).is_file():
                _pass_by(walk, index)
        bar(len(journal.apart))
        source, folder = str(skeleton.checkpoint.folder), str(streams.folder)
        jobs = {
            engine.submit(_job, source, folder, walk.order, streams.batches, index): index
            for index in range(total)
            if str(index) not in journal.apart
        }
        try:
            for ended in engine.as_completed():
                if ended.error is not None:
                    raise told(ended.error, jobs[ended.job])
                journal.done_apart(jobs[ended.job], ended.value)
                bar(1)
        finally:
            engine.cancel()
    return [journal.apart[str(index)] for index in range(total)]


def _pass_by(walk: Walk, index: int) -> None:
    """Write the dense network's stream behind a block."""
    stream, device = walk.streams.into(index), walk.order.device
    with walk.skeleton.filled(index, device) as net, torch.no_grad():

        def behind(i: int) -> Tensor:
            found: Tensor = call(net, to_device(stream[i], device), i)
            return found

        walk.streams.behind(index, behind)
    return_memory()


def _job(
    source: str, folder: str, order: Order, batches: Sequence[Batch], index: int
) -> BlockResult:
    """Prune one block, in whatever process."""
    skeleton = Skeleton(open_checkpoint(Path(source)))
    streams = Streams(skeleton=skeleton, batches=batches, folder=Path(folder))
    walk = Walk(skeleton=skeleton, order=order, streams=streams, others=Ranks(None))
    with few_leftovers():
        return one_block(walk, index, goes_on=False)
