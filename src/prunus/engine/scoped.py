"""One step by scopes: each is calibrated on its own inputs, pruned, and gone on from."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.calibration.batches import Fingerprint, call, parts, to_device
from prunus.calibration.calibrating import NEVER_RAN
from prunus.calibration.statistics import combined, resolved
from prunus.calibration.view_check import blind_layers, check_views
from prunus.engine.edges import mask_of, result_of
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
from prunus.engine.unit import Fit, Kept, Layers, Picked, Unit
from prunus.engine.write import Masks, merged, new_values
from prunus.layer import Layer
from prunus.modes import copied, evaluating
from prunus.result import LayerResult
from prunus.scopes import scope_layers
from prunus.surgery.masked import apply_masks
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
) -> tuple[Found, Mapping[str, int], list[Any]]:
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
    data: Sequence[Any],
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
    job: Job, work: nn.Module, names: Sequence[str], kept: Sequence[Any], calls: Mapping[str, int]
) -> Found:
    """The layers that run on the data; nothing is collected."""
    fingerprint = Fingerprint()
    with evaluating(work), torch.no_grad():
        for part in kept:
            fingerprint.add(part)
            call(work, to_device(part, job.device))
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
    data: Sequence[Any],
) -> Done:
    """Prune `work`, in place, scope by scope.

    A pool is decided when its turn comes, from statistics of inputs in which all scopes before
    are pruned. A layer gets its new values in its own scope; rows that a later choice takes from
    it go then.

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
    choices: dict[str, Picked] = {}
    decided: set[str] = set()
    masks: Masks = {}
    results: dict[str, LayerResult] = {}
    fits: dict[str, Fit] = {}
    held: dict[str, Layer] = {}
    present = copied(work)
    dense = copied(job.dense) if job.recipe.schedule.renews else present
    # Weights of their own network: those of `work` change under the layers.
    found_base, base = with_weights(base, present), with_weights(base, dense)
    with ExitStack() as stack:
        source, notes = stack.enter_context(opened(job, dense, work, calls, data))
        # New values aim at the dense network; a choice is made by the one that the round found.
        eyes = source
        if dense is not present and not source.paired:
            eyes, _ = stack.enter_context(opened(job, present, None, calls, data))
        for scope in scopes(job, dense, unit, data):
            keys = unit.due(scope)
            asked = dict.fromkeys(n for n in (*scope, *unit.needs(keys)) if n not in held)
            names = sorted(asked, key=job.position)
            found = scope_layers(source, names, base=base, model=work, wanted=wanted)
            layers = {**held, **found}
            fresh: Masks = {}
            seen: Layers = layers
            if keys and eyes is not source:
                read = sorted(unit.needs(keys), key=job.position)
                seen = scope_layers(eyes, read, base=found_base, model=present, wanted=wanted)
            elif dense is not present:
                seen = with_weights(layers, present)
            for key in keys:
                scores = unit.pools(seen, (key,))[key]
                choices[key] = unit.choose(key, seen, scores, kept[key], remembered=False)
                fresh = merged(fresh, unit.masks(work, key, choices[key]))
            decided.update(keys)
            masks = merged(masks, fresh)
            for name in scope:
                held[name] = layers[name]
                fits[name] = new_values(work, unit, layers, name, choices, masks)
                weight_at(work, name).put(fits[name].weight, fits[name].bias)
            written = [weight_at(work, name) for name in scope]
            paths = {*fresh, *(p for w in written for p in (w.path, w.bias_path) if p)}
            apply_masks(work, {key: mask for key, mask in masks.items() if key in paths})
            source.changed(sorted(paths))
            for name in [n for n in held if unit.complete(n, decided)]:
                fit = replace(fits.pop(name), mask=mask_of(work, name, masks))
                fit, error = unit.measured(held.pop(name), fit, masks)
                results[name] = result_of(name, fit, error)
                if unit.cut is None:  # a joint method's choice holds weights, which are written
                    del choices[name]
    return Done(classes=unit.classes(choices), masks=masks, results=results, notes=notes)
