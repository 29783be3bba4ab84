"""One step's way through the scopes of a network: each is measured, chosen, written, left."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from prunus.calibration.gather import Gatherer
from prunus.engine.edges import result_of
from prunus.engine.statistics import Wanted, with_weights
from prunus.engine.unit import Fit, Kept, Layers, Picked, Unit
from prunus.engine.write import Masks, merged, new_values
from prunus.host import return_memory
from prunus.layer import Layer
from prunus.result import LayerResult
from prunus.scopes import Source, scope_layers
from prunus.surgery.masked import apply_masks
from prunus.weights import weight_at

__all__ = ["Sweep"]

LARGE = 2**20  # weights of a layer behind which freed memory is given back to the system


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
                own = own.copied()
            self._held[name] = own
            place = weight_at(work, name)
            self._fits[name] = new_values(place, unit, layers, self.choices, self.masks)
            place.put(self._fits[name].weight, self._fits[name].bias)
        written = [weight_at(work, name) for name in names]
        paths = {*fresh, *(p for w in written for p in (w.path, w.bias_path) if p)}
        apply_masks(work, {key: mask for key, mask in self.masks.items() if key in paths})
        return paths

    def _complete(self) -> Iterator[LayerResult]:
        """The accounts of the layers that no later choice changes."""
        unit = self._unit
        for name in [n for n in self._held if unit.complete(n, self._decided)]:
            fit = replace(self._fits.pop(name), mask=weight_at(self._work, name).kept(self.masks))
            layer = self._held.pop(name)
            fit, error = unit.measured(layer, fit, self.masks)
            if unit.cut is None:  # a joint method's choice holds weights, which are written
                self.choices.pop(name, None)
            yield result_of(layer, fit, error, units=unit.recipe.units)
