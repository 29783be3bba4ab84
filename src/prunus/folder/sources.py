"""What the layers of one block see of the streams that go into it, and what comes behind it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from prunus.calibration.batches import call, first_of, to_device
from prunus.folder.block_net import BlockNet
from prunus.folder.order import Order
from prunus.modes import evaluating
from prunus.scopes import Files, Replay, Replayed, rehearsed
from prunus.weights import weight_at

__all__ = ["outputs_of", "runs", "source_of"]


def source_of(
    order: Order,
    net: BlockNet,
    dense: nn.Module,
    calls: Mapping[str, int],
    stream: Sequence[Any],
    dense_stream: Sequence[Any] | None,
    stack: ExitStack,
) -> Replayed:
    """What yields the inputs of a block's layers.

    Args:
        order: how it is pruned.
        net: the block that is being pruned.
        dense: the block with its dense weights; `net` where nothing is read after it has changed.
        calls: how often each layer is called in a pass, in order of execution.
        stream: what goes into the block.
        dense_stream: the dense network's beside it, where new values aim at that.
        stack: holds open what is kept.
    """
    name = net.__dict__["_skeleton"].block_name(net.index)
    whole = order.within == "block" and not order.alone
    remember, loose = True, frozenset[str]()
    if not whole:
        small = [first_of(stream[0], 2), first_of(stream[len(stream) - 1], 2)]
        habits = rehearsed(
            net,
            small,
            device=order.device,
            weights={n: weight_at(net, n) for n in calls},
            calls=calls,
            chain=(),
        )
        remember, loose = habits.remember, habits.loose

    def replay(model: nn.Module, parts: Sequence[Any], *, finish: bool) -> Replay:
        return stack.enter_context(
            Replay(
                model,
                parts,
                device=order.device,
                weights={n: weight_at(model, n) for n in calls},
                calls=calls,
                loose=loose,
                closed=(name,) if whole else (),
                finish=finish,
                keep=stack.enter_context(Files(order.scratch)),
                remember=remember,
            )
        )

    goes_on = order.recipe.inputs == "dense" or order.aim == "dense"
    parts = stream if dense_stream is None else dense_stream
    first = replay(dense, parts, finish=goes_on and whole)
    work = replay(net, stream, finish=False) if order.paired else None
    return Replayed(first, work, stream, order.device)


def outputs_of(
    order: Order, source: Replayed, net: nn.Module, stream: Sequence[Any]
) -> tuple[Callable[[int], torch.Tensor], Callable[[int], torch.Tensor] | None]:
    """The stream behind the block, and the dense one where it goes on beside."""
    if order.recipe.inputs == "dense":
        return source.dense.output, None  # kept, or run again by the dense block
    beside = source.dense.output if order.aim == "dense" else None
    if source.pruned is not None:
        return source.pruned.output, beside

    return runs(net, order, stream), beside


def runs(net: nn.Module, order: Order, stream: Sequence[Any]) -> Callable[[int], torch.Tensor]:
    """The outputs of a block that is run anew for each batch."""

    def run(index: int) -> torch.Tensor:
        with evaluating(net), torch.no_grad():
            found: torch.Tensor = call(net, to_device(stream[index], order.device), index)
        return found

    return run
