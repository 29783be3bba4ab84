"""The blocks of a folder in turn: each is read, pruned, written, and gone on from."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.folder.block_net import BlockNet
from prunus.folder.blocks import PrunedBlock, prune_block
from prunus.folder.finish import block_name
from prunus.folder.hidden import Stream
from prunus.folder.journal import Journal
from prunus.folder.needs import Needs, time_words
from prunus.folder.order import Order
from prunus.folder.others import Others
from prunus.folder.result import BlockResult
from prunus.folder.skeleton import Skeleton
from prunus.folder.streams import DENSE, Streams
from prunus.folder.tensors import write_tensors
from prunus.host import few_leftovers, return_memory
from prunus.progress import progress_bar

__all__ = ["Walk", "go_through", "left", "one_block"]

log = logging.getLogger("prunus")


@dataclass(frozen=True, eq=False, kw_only=True)
class Walk:
    """What stays the same from block to block.

    Attributes:
        skeleton: the model.
        order: how its blocks are pruned.
        streams: what goes into each; of no batches where the recipe reads no inputs.
        others: the processes that prune together.
    """

    skeleton: Skeleton
    order: Order
    streams: Streams
    others: Others


def go_through(
    walk: Walk,
    blocks: Sequence[BlockResult],
    journal: Journal | None,
    needs: Needs,
    progress: bool | None,
) -> list[BlockResult]:
    """Prune the blocks that are not done.

    Args:
        walk: what stays the same.
        blocks: the accounts of those that are done.
        journal: notes each that is; None in processes that do not write.
        needs: as said before the start; the time is estimated anew from what blocks took.
        progress: as in `progress_bar`.

    Returns:
        the accounts of all.
    """
    done, total = list(blocks), walk.skeleton.blocks
    for index in range(len(done)):  # a kill can come between the journal and this
        walk.streams.forget(index)
    words = f"pruning blocks by {walk.order.name}"
    log.info("%s: %s", words, needs.summary())
    with (
        few_leftovers(),
        progress_bar(f"{words} ({needs.short()})", total, progress=progress) as bar,
    ):
        bar(len(done))
        for index in range(len(done), total):
            done.append(one_block(walk, index, goes_on=index + 1 < total))
            walk.others.wait()  # all streams are there
            if journal is not None:
                journal.done(done[-1])
            walk.others.wait()  # and the journal says so
            return_memory()
            walk.streams.forget(index)
            said = left(done[len(blocks) :], total - len(done))
            log.info("block %d of %d took %s; %s", index, total, time_words(done[-1].seconds), said)
            bar(1, f"{words} ({said})")
    return done


def left(ran: Sequence[BlockResult], blocks: int) -> str:
    """How long so many blocks will take, from what those took that ran: the first is the odd one.

    Its time holds what is imported and compiled once, so that it counts until there is another.
    """
    seconds = [block.seconds for block in (ran[1:] or ran)]
    return f"about {time_words(blocks * sum(seconds) / len(seconds))} left"


def one_block(walk: Walk, index: int, *, goes_on: bool) -> BlockResult:
    """Prune one block, write it, and the stream behind it before that where the walk goes on."""
    streams, order = walk.streams, walk.order
    stream = dense = None
    if streams.batches:
        stream = streams.into(index)
        if order.aim == "dense":
            dense = streams.into(index, DENSE)
    with ExitStack() as stack:
        net = stack.enter_context(walk.skeleton.filled(index, order.device))
        begun = time.perf_counter()
        with ExitStack() as passes:
            done = _pruned(walk, net, stream, dense, passes)
            if streams.batches and goes_on:
                with walk.others.behind(net):
                    streams.behind(index, done.outputs)
                    if done.dense_outputs is not None:
                        streams.behind(index, done.dense_outputs, DENSE)
        if walk.others.rank == 0:
            _write_block(walk, done.small(), index)
        return replace(done.account, seconds=time.perf_counter() - begun)


def _pruned(
    walk: Walk, net: BlockNet, stream: Stream | None, dense: Stream | None, stack: ExitStack
) -> PrunedBlock:
    skeleton = walk.skeleton
    given: Any = stream
    if given is None:
        given = [skeleton.calls_stream(1, 2).to(walk.order.device)]
    try:
        return prune_block(net, walk.order, walk.others, given, dense, stack)
    except ValueError as error:
        raise ValueError(f"Block {net.index} of {skeleton.home}: {error}") from error


def _write_block(walk: Walk, net: nn.Module, index: int) -> None:
    """The file of a pruned block; each tensor has the type that it had, whatever the block ran in.

    What pruning has left alone keeps its bits where the block ran in another type.
    """
    state, checkpoint = net.state_dict(), walk.skeleton.checkpoint
    own = {key: state[name] for name, key in walk.skeleton.parameters(index).items()}
    shapes = {key: (checkpoint.tensors[key].dtype, tuple(t.shape)) for key, t in own.items()}
    stored = ((key, _as_stored(own[key], before)) for key, before in checkpoint.read(own))
    write_tensors(walk.streams.folder / block_name(index), shapes, stored)


def _as_stored(value: Tensor, before: Tensor) -> Tensor:
    """A value in the type of the tensor it was read from, of which it takes what is the same."""
    if value.dtype == before.dtype:
        return value
    new = value.detach().cpu()
    if new.shape != before.shape:  # lost channels
        return new.to(before.dtype)
    return torch.where(new == before.to(new.dtype), before, new.to(before.dtype))
