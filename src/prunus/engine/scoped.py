"""One step by scopes: each is calibrated on its own inputs, pruned, and gone on from."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.calibration.batches import Fingerprint, call, parts, to_device
from prunus.calibration.calibrating import NEVER_RAN
from prunus.calibration.statistics import combined, resolved
from prunus.calibration.view_check import blind_layers, check_views
from prunus.engine.job import Job
from prunus.engine.sources import opened, scopes
from prunus.engine.statistics import (
    Found,
    Wanted,
    bare_layers,
    counted,
    statistics,
    with_weights,
)  # fmt: skip
from prunus.engine.sweep import Sweep
from prunus.engine.unit import Kept, Layers, Unit
from prunus.engine.write import Masks
from prunus.hints import Batch
from prunus.modes import copied, evaluating
from prunus.result import LayerResult
from prunus.scopes import scope_layers
from prunus.weights import weight_at

__all__ = ["Done", "by_scopes", "first_found", "pools_by_scopes"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Done:
    """What a pass through the scopes has done.

    Attributes:
        classes: the kept channel classes by group.
        masks: what all choices leave of every parameter.
        results: by layer.
        notes: what the reader should know.
    """

    classes: Mapping[str, Tensor]
    masks: Masks
    results: Mapping[str, LayerResult]
    notes: tuple[str, ...] = ()


def first_found(
    job: Job, work: nn.Module, unit: Unit, *, reads: bool
) -> tuple[Found, Mapping[str, int], list[Batch]]:
    """What must be known before the first scope: which layers run, and what a plan reads.

    Args:
        job: what is pruned.
        work: the network before the step.
        unit: what is kept or removed as one.
        reads: the plan depends on scores, so that their statistics are collected first, on the
            dense inputs; with blocks, by `pools_by_scopes`.

    Returns:
        the layers that ran, how often each is called in a pass, and the data in parts.
    """
    assert job.batches is not None  # checked before any work
    recipe = job.recipe
    wanted: Wanted = [s for s in resolved(recipe.statistics).values() if not s.reads.sequential]
    if reads and job.blocks is None:
        wanted = combined([*wanted, *recipe.score.statistics, *recipe.allocation.statistics])
    kept = [part for batch in job.batches for part in parts(batch)]
    weights = [weight_at(work, name) for name in unit.layers]
    check_views(work, weights, kept[0], job.device)
    blind = blind_layers(work, weights, kept[0], job.device)
    names = [name for name in unit.layers if name not in blind]
    with counted(work, names) as calls:
        if wanted:
            found = statistics(job, work, names, wanted, again=False)
        else:
            found = _bare(job, work, names, kept, calls)
    found = replace(found, never_ran={**found.never_ran, **blind})
    return found, {name: calls[name] for name in found.layers}, kept


def pools_by_scopes(
    job: Job,
    work: nn.Module,
    unit: Unit,
    base: Layers,
    calls: Mapping[str, int],
    data: Sequence[Batch],
) -> Pools:
    """The scores of all pools on the dense inputs, with the statistics of one scope at a time."""
    asked = combined([*job.recipe.score.statistics, *job.recipe.allocation.statistics])
    pools: dict[str, Tensor] = {}
    with opened(job, work, None, calls, data) as (source, _):
        for scope in scopes(job, work, unit, data):
            keys = unit.due(scope)
            names = sorted({*scope, *unit.needs(keys)}, key=job.position)
            found = scope_layers(source, names, base=base, model=work, wanted=asked)
            pools.update(unit.pools(found, keys))
    return {key: pools[key] for key in unit.blank(base)}


def _bare(
    job: Job, work: nn.Module, names: Sequence[str], kept: Sequence[Batch], calls: Mapping[str, int]
) -> Found:
    """The layers that run on the data; nothing is collected."""
    fingerprint = Fingerprint()
    with evaluating(work), torch.no_grad():
        for i, part in enumerate(kept):
            fingerprint.add(part)
            call(work, to_device(part, job.device), i)
    ran = [name for name in names if calls[name]]
    if not ran:
        raise ValueError(
            f"None of the layers {list(names)} ran on the data. Check the model's forward."
        )
    return Found(
        layers=bare_layers(work, ran),
        never_ran={n: NEVER_RAN for n in names if not calls[n]},
        fingerprint=fingerprint.value,
        rows=fingerprint.rows,
    )


def by_scopes(
    job: Job,
    work: nn.Module,
    unit: Unit,
    base: Layers,
    kept: Kept,
    wanted: Wanted,
    calls: Mapping[str, int],
    data: Sequence[Batch],
) -> Done:
    """Prune `work`, in place, scope by scope.

    Args:
        job: what is pruned.
        work: the network.
        unit: what is kept or removed as one.
        base: the layers of the network before the step.
        kept: the plan.
        wanted: statistics to collect; those of the whole network come from `base`.
        calls: how often each layer is called in a pass.
        data: in parts of bounded size.
    """
    present = copied(work)
    dense = copied(job.dense) if job.recipe.schedule.renews else present
    results: dict[str, LayerResult] = {}
    with ExitStack() as stack:
        source, notes = stack.enter_context(opened(job, dense, work, calls, data))
        # New values aim at the dense network; a choice is made by the one that the round found.
        eyes = source
        if dense is not present and not source.paired:
            eyes, _ = stack.enter_context(opened(job, present, None, calls, data))
        sweep = Sweep(
            work,
            unit,
            kept,
            wanted,
            source=source,
            eyes=eyes,
            # Weights of their own network: those of `work` change under the layers.
            base=with_weights(base, dense),
            seen=None if dense is present else with_weights(base, present),
            present=present,
        )
        for scope in scopes(job, dense, unit, data):
            results |= {result.name: result for result in sweep.scope(scope)}
    return Done(
        classes=unit.classes(sweep.choices), masks=sweep.masks, results=results, notes=notes
    )
