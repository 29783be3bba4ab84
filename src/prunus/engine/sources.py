"""The scopes of a network, and the inputs that are kept between them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from prunus.calibration.batches import first_of, to_device
from prunus.calibration.layout import layout_of
from prunus.engine.job import Job
from prunus.engine.unit import Unit
from prunus.hints import Batch
from prunus.scopes import (
    Files,
    Replay,
    Replayed,
    Source,
    blocks_of,
    found_blocks,
    rehearsed,
    scopes_of,
)
from prunus.weights import weight_at

__all__ = ["opened", "scopes"]

ANEW = (
    "kept inputs do not serve this network, which draws at random or hands something from one "
    "module to another beside its arguments: each scope ran it from its start"
)


def scopes(job: Job, model: nn.Module, unit: Unit, data: Sequence[Batch]) -> list[tuple[str, ...]]:
    """The layers of each scope, in order of execution: each layer by itself, or blocks."""
    names = sorted(unit.layers, key=job.position)
    if job.blocks is None:
        return [(name,) for name in names]
    owners = {name: weight_at(model, name).owner for name in names}
    example = to_device(first_of(data[0], 2), job.device)
    return scopes_of(names, owners, blocks_of(model, job.blocks, owners, example))


@contextmanager
def opened(
    job: Job,
    dense: nn.Module,
    pruned: nn.Module | None,
    calls: Mapping[str, int],
    data: Sequence[Batch],
) -> Iterator[tuple[Source, tuple[str, ...]]]:
    """The inputs of the dense network and of the one that is being pruned, and what to say of them.

    Args:
        job: what is pruned.
        dense: the network before the step.
        pruned: the one that changes; None where all statistics are dense.
        calls: how often each layer is called in a pass.
        data: in parts of bounded size.
    """
    names = sorted(calls, key=job.position)
    owners = {name: weight_at(dense, name).owner for name in names}
    small = [first_of(part, 2) for part in (data[0], *data[1:][-1:])]
    example = to_device(small[0], job.device)
    asked = job.blocks is not None and job.blocks != "auto"
    chain = (
        blocks_of(dense, str(job.blocks), owners, example)
        if asked
        else found_blocks(dense, owners, example)
    )
    habits = rehearsed(
        dense,
        small,
        device=job.device,
        weights={name: weight_at(dense, name) for name in names},
        calls=calls,
        chain=chain,
    )
    layout = layout_of(dense, to_device(data[0], job.device))
    with ExitStack() as stack:

        def replay(model: nn.Module, *, finish: bool) -> Replay:
            passes = Replay(
                model,
                data,
                device=job.device,
                weights={name: weight_at(model, name) for name in names},
                calls=calls,
                loose=habits.loose,
                chain=habits.chain,
                closed=() if job.blocks is None else chain,
                finish=finish,
                keep=None if job.keep is None else stack.enter_context(Files(job.keep)),
                remember=habits.remember,
            )
            return stack.enter_context(passes)

        work = (
            None if pruned is None or job.recipe.inputs == "dense" else replay(pruned, finish=False)
        )
        source = Replayed(replay(dense, finish=True), work, data, job.device, layout)
        yield source, () if habits.remember else (ANEW,)
