"""One step by scopes: each is calibrated on its own inputs, pruned, and gone on from."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.calibration.batches import Fingerprint, call, parts, to_device
from prunus.calibration.calibrating import NEVER_RAN
from prunus.calibration.gather import Gatherer
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
from prunus.host import return_memory
from prunus.layer import Layer
from prunus.modes import copied, evaluating
from prunus.result import LayerResult
from prunus.scopes import Source, scope_layers
from prunus.surgery.masked import apply_masks
from prunus.weights import weight_at

__all__ = ["Done", "Sweep", "by_scopes", "first_found", "pools_by_scopes"]

LARGE = 2**20  # weights of a layer behind which freed memory is given back to the system


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


class Sweep:
    """One step's way through the scopes of a network, which is pruned in place.

    A pool is decided when its turn comes, from statistics of inputs in which all scopes before
    are pruned. A layer gets its new values in its own scope; rows that a later choice takes from
    it go then.

    Attributes:
        choices: so far; those of single weights are let go of when they are written.
        masks: what all choices so far leave of every parameter.
    """

    def __init__(
        self,
        work: nn.Module,
        unit: Unit,
        kept: Kept,
        wanted: Wanted,
        *,
        source: Source,
        eyes: Source,
        base: Layers,
        seen: Layers | None,
        present: nn.Module,
        combine: Callable[[Gatherer], None] | None = None,
    ) -> None:
        """Nothing is done yet.

        Args:
            work: the network.
            unit: what is kept or removed as one.
            kept: the plan.
            wanted: statistics to collect; those of the whole network come from `base`.
            source: of the inputs, dense and pruned; new values aim at its dense network.
            eyes: of the inputs by which is chosen; `source`, where choices are made by the same.
            base: the layers of the network at which new values aim.
            seen: those of `present`, where that is another one; else None.
            present: the network before the step; `work` itself where all that is read of it lies
                in one scope.
            combine: of `scope_layers`.
        """
        self.choices: dict[str, Picked] = {}
        self.masks: Masks = {}
        self._work, self._unit, self._kept, self._wanted = work, unit, kept, wanted
        self._source, self._eyes = source, eyes
        self._base, self._seen, self._present = base, seen, present
        self._combine = combine
        self._decided: set[str] = set()
        self._fits: dict[str, Fit] = {}
        self._held: dict[str, Layer] = {}

    def scope(self, scope: Sequence[str]) -> Iterator[LayerResult]:
        """Prune the layers of one scope; yields each that is complete, and holds on to none."""
        unit, order = self._unit, self._unit.job.position
        keys = unit.due(scope)
        asked = dict.fromkeys(n for n in (*scope, *unit.needs(keys)) if n not in self._held)
        names = sorted(asked, key=order)
        layers = {**self._held, **self._statistics(self._source, names, self._base)}
        seen: Layers = layers
        if keys and self._eyes is not self._source:
            assert self._seen is not None  # other eyes see another network
            seen = self._statistics(
                self._eyes, sorted(unit.needs(keys), key=order), self._seen, model=self._present
            )
        elif self._seen is not None:
            seen = with_weights(layers, self._present)
        # Single weights are decided and written layer by layer; classes change several layers.
        turns: Iterable[tuple[Sequence[str], Sequence[str]]] = [(keys, scope)]
        if unit.cut is None:
            turns = [((name,) if name in keys else (), (name,)) for name in scope]
        paths: set[str] = set()
        for own, written in turns:
            paths |= self._write(own, written, layers, seen)
            yield from self._complete()
            if any(layers[name].weight.numel() > LARGE for name in written):
                return_memory()
        self._source.changed(sorted(paths))

    def _statistics(
        self, source: Source, names: Sequence[str], base: Layers, model: nn.Module | None = None
    ) -> dict[str, Layer]:
        return scope_layers(
            source,
            names,
            base=base,
            model=self._work if model is None else model,
            wanted=self._wanted,
            combine=self._combine,
        )

    def _write(
        self, keys: Sequence[str], names: Sequence[str], layers: Layers, seen: Layers
    ) -> set[str]:
        """Decide some pools, and give some layers their new values; the parameters changed."""
        unit, work = self._unit, self._work
        fresh: Masks = {}
        for key in keys:
            scores = unit.pools(seen, (key,))[key]
            self.choices[key] = unit.choose(key, seen, scores, self._kept[key], remembered=False)
            fresh = merged(fresh, unit.masks(work, key, self.choices[key]))
        self._decided.update(keys)
        self.masks = merged(self.masks, fresh)
        for name in names:
            own = layers[name]
            if self._present is work:  # its weight is about to change
                bias = None if own.bias is None else own.bias.clone()
                own = replace(own, weight=own.weight.clone(), bias=bias)
            self._held[name] = own
            self._fits[name] = new_values(work, unit, layers, name, self.choices, self.masks)
            weight_at(work, name).put(self._fits[name].weight, self._fits[name].bias)
        written = [weight_at(work, name) for name in names]
        paths = {*fresh, *(p for w in written for p in (w.path, w.bias_path) if p)}
        apply_masks(work, {key: mask for key, mask in self.masks.items() if key in paths})
        return paths

    def _complete(self) -> Iterator[LayerResult]:
        """The accounts of the layers that no later choice changes."""
        unit = self._unit
        for name in [n for n in self._held if unit.complete(n, self._decided)]:
            fit = replace(self._fits.pop(name), mask=mask_of(self._work, name, self.masks))
            layer = self._held.pop(name)
            fit, error = unit.measured(layer, fit, self.masks)
            if unit.cut is None:  # a joint method's choice holds weights, which are written
                self.choices.pop(name, None)
            yield result_of(layer, fit, error, units=unit.recipe.units)
