"""One block of a folder pruned by the engine, from the streams that go into it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.calibration.batches import call, first_of, to_device
from prunus.calibration.view_check import blind_layers, check_views
from prunus.check import matches
from prunus.engine.job import Job, State, job_of
from prunus.engine.kinds import unit_of
from prunus.engine.statistics import bare_layers, counted, measurable, with_weights
from prunus.engine.step import counts_for
from prunus.engine.sweep import Sweep
from prunus.engine.unit import Unit
from prunus.folder.block_net import BlockNet
from prunus.folder.order import Order, selected, target_within
from prunus.folder.others import Others
from prunus.folder.result import BlockResult, LayerAccount
from prunus.folder.sources import outputs_of, runs, source_of
from prunus.hints import Batch
from prunus.modes import copied, evaluating
from prunus.scopes import Replayed
from prunus.surgery.compact import compact_groups
from prunus.weights import weight_at, weights_of

__all__ = ["PrunedBlock", "prune_block"]

NEVER_RAN = "its forward never ran on the first batch"


@dataclass(frozen=True, eq=False, kw_only=True)
class PrunedBlock:
    """A block after pruning.

    Attributes:
        account: what was done.
        small: makes the block without the classes that went, when nobody watches it any more.
        outputs: the stream behind it, by batch.
        dense_outputs: the dense network's, where it goes on beside; else None.
    """

    account: BlockResult
    small: Callable[[], nn.Module]
    outputs: Callable[[int], torch.Tensor]
    dense_outputs: Callable[[int], torch.Tensor] | None


def prune_block(
    net: BlockNet,
    order: Order,
    others: Others,
    stream: Sequence[Batch],
    dense_stream: Sequence[Any] | None,
    stack: ExitStack,
) -> PrunedBlock:
    """Prune a block in place.

    Args:
        net: the block with its dense weights.
        order: how.
        others: processes that run other batches through it.
        stream: what goes into it; the dense network's where the recipe's inputs are dense.
        dense_stream: the dense network's beside it, where new values aim at that.
        stack: holds open what the outputs are computed from.

    Raises:
        ValueError: no layer is selected, or inputs are NaN or infinite (the layer is named).
    """
    begun = time.perf_counter()
    names = tuple(weights_of(net))
    if not selected(names, order):
        left = BlockResult(layers={}, not_pruned=dict.fromkeys(names, "not selected"))
        outputs = runs(net, order, stream)
        beside = outputs if dense_stream is None else runs(net, order, dense_stream)
        return PrunedBlock(
            account=left,
            small=lambda: net,
            outputs=outputs,
            dense_outputs=beside if order.aim == "dense" else None,
        )
    job, notes = _job(net, order, stream[0], names)
    unit, calls, refused = _unit(job, order, net, stream[0])
    state = State(
        target=target_within(order.target, unit.layers),
        planner=order.recipe,
        not_pruned={**job.not_pruned, **refused},
        notes=notes,
    )
    bare = bare_layers(net, unit.layers)
    state, kept = counts_for(state, unit, bare, unit.blank(bare), 1.0)
    wanted: Any = order.recipe.statistics
    if order.measure:
        wanted, said = measurable(bare, wanted)
        state = state.noted(*said)
    # A dense block beside it is read after the first layers have changed.
    apart = order.paired or order.alone
    dense = copied(net) if apart else net
    source = source_of(order, net, dense, calls, stream, dense_stream, stack)
    asked = others.beside(source, net, calls, wanted)
    sweep = Sweep(
        net,
        unit,
        kept,
        wanted,
        source=asked,
        eyes=asked,
        base=with_weights(bare, dense),
        seen=None,
        present=dense,
        combine=others.combine,
    )
    accounts: dict[str, LayerAccount] = {}
    for scope in _scopes(job, order, source, unit):
        for result in sweep.scope(scope):
            accounts[result.name] = LayerAccount(
                kept=int(result.mask.sum()),
                total=result.mask.numel(),
                error=result.error,
                power=result.power,
                ridge=result.ridge,
            )
    groups = unit.cut

    def small() -> nn.Module:
        if groups is None:
            return net
        example = to_device(first_of(stream[0], 8), order.device)
        return compact_groups(net, groups, example, inexact=order.recipe.granularity.inexact).model

    after, dense_after = outputs_of(order, source, net, stream)
    account = BlockResult(
        layers={name: accounts[name] for name in sorted(accounts, key=job.position)},
        not_pruned={n: why for n, why in state.not_pruned.items() if n not in accounts},
        notes=state.notes,
        seconds=time.perf_counter() - begun,
    )
    return PrunedBlock(account=account, small=small, outputs=after, dense_outputs=dense_after)


def _job(
    net: BlockNet, order: Order, first: Any, names: Sequence[str]
) -> tuple[Job, tuple[str, ...]]:
    skeleton = net.__dict__["_skeleton"]
    if isinstance(first, torch.Tensor):  # what calls look like is found before anything is traced
        for rows in {min(rows, len(first)) for rows in (1, 2, 8)}:
            skeleton.calls(rows, first.shape[1])

    def here(globs: Sequence[str]) -> list[str]:  # the others speak of other blocks
        return [g for g in globs if any(matches(n, g) for n in names)]

    return job_of(
        net,
        order.recipe,
        order.name,
        [first],
        layers=None if order.layers is None else here(order.layers),
        exclude=here(order.exclude or ()) or None,
        verifying=None,
        loss=None,
        seed=order.seed,
        device=order.device,
        progress=False,
        memo=None,
        blocks=None,
        keep=order.scratch,
    )


def _unit(
    job: Job, order: Order, net: BlockNet, first: Any
) -> tuple[Unit, Mapping[str, int], dict[str, str]]:
    """What is kept or removed as one, the calls of layers in their order, what is left whole."""
    state = State(target=order.target, planner=order.recipe, not_pruned={})
    unit = unit_of(job, order.recipe, state, net)
    weights = [weight_at(net, name) for name in unit.layers]
    check_views(net, weights, first, order.device)
    refused = dict(blind_layers(net, weights, first, order.device))
    with counted(net, unit.layers) as calls, evaluating(net), torch.no_grad():
        call(net, to_device(first, order.device))
    refused |= {n: NEVER_RAN for n in unit.layers if not calls[n] and n not in refused}
    unit = unit.among([n for n in unit.layers if n not in refused])
    names = sorted(unit.layers, key=job.position)
    return unit, {n: calls[n] for n in names}, {**unit.refused, **refused}


def _scopes(job: Job, order: Order, source: Replayed, unit: Unit) -> list[tuple[str, ...]]:
    """All layers together, or those that share an input one after the other."""
    names = sorted(unit.layers, key=job.position)
    if order.within == "block" and not order.alone:
        return [tuple(names)]
    seen = source.dense.seen(0, names).inputs
    found: list[list[str]] = []
    for name in names:
        own = [id(tensor) for tensor in seen[name]]
        if found and own == [id(tensor) for tensor in seen[found[-1][0]]]:
            found[-1].append(name)
        else:
            found.append([name])
    return [tuple(scope) for scope in found]
