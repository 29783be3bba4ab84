"""The statistics of one scope's layers, from the passes of a source."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from prunus.calibration.gather import Gatherer
from prunus.calibration.sequential import TOWARDS_DENSE, beside, carried
from prunus.calibration.statistics import Statistic, resolved
from prunus.layer import Layer
from prunus.scopes.source import Pass, Source
from prunus.views import LinearView
from prunus.weights import Weight, weight_at

__all__ = ["scope_layers", "scope_sums"]


def scope_layers(
    source: Source,
    names: Sequence[str],
    *,
    base: Mapping[str, Layer],
    model: nn.Module,
    wanted: Iterable[str | Statistic],
    combine: Callable[[Gatherer], None] | None = None,
) -> dict[str, Layer]:
    """Layers with the statistics of a scope, which go when the answer goes.

    Where the source has a network that is being pruned, the statistics are those of its inputs x
    (and outputs); where the Gram matrix is among them, `cross` is E[x_dense xᵀ], and `dense_gram`
    and `dense_mean` are the dense network's. Weights are those of `base`, and so are statistics of
    the whole network, such as gradients. Layers that take one and the same tensor in every pass, as
    the projections to queries, keys and values do, have one sum, and hold the same statistics.

    Args:
        source: of the inputs; read once.
        names: the layers.
        base: the layers of the dense network.
        model: a network with their modules.
        wanted: statistics, by name or as instances.
        combine: called with the sums when the source is read, to add those of other processes.

    Raises:
        ValueError: a layer never ran on the data, or its inputs are NaN or infinite (it is named).
    """
    every = _every(source, wanted)
    if not any(s.reads.sequential for s in every.values()):
        return {name: base[name] for name in names}  # nothing that a pass would show
    asked = list(every.values())
    gatherer, first = scope_sums(source, names, base=base, model=model, wanted=asked)
    if combine is not None:
        combine(gatherer)
    found: dict[str, Layer] = {}
    for name in names:
        one = first.get(name, name)
        if one == name:
            found[name] = carried(base[name], gatherer, every, base[name])
            gatherer.sums.pop(name, None)  # as large as what has become of them
        else:
            found[name] = beside(base[name], found[one], every)
    return found


def scope_sums(
    source: Source,
    names: Sequence[str],
    *,
    base: Mapping[str, Layer],
    model: nn.Module,
    wanted: Iterable[str | Statistic],
) -> tuple[Gatherer, dict[str, str]]:
    """The sums behind `scope_layers`, of the layers that have some of their own.

    Args:
        source: of the inputs; read once.
        names: the layers.
        base: as in `scope_layers`.
        model: a network with their modules.
        wanted: statistics, by name or as instances.

    Returns:
        what gathered them, and for each layer the one whose sums are its own too.

    Raises:
        ValueError: inputs are NaN or infinite (the layer is named).
    """
    every = _every(source, wanted)
    sequential = {key: s for key, s in every.items() if s.reads.sequential}
    weights = {name: weight_at(model, name) for name in names}
    gatherer = Gatherer(base, sequential)
    outputs = bool(gatherer.reading("outputs"))
    alike = all(s.reads.inputs_only for s in sequential.values())
    first: dict[str, str] = {}  # of the layers that have taken the same inputs so far
    for seen in source.passes(names, outputs=outputs):
        gatherer.padding = seen.padding
        now = _first_alike(seen, weights) if alike else {name: name for name in names}
        for name in [n for n in names if first.get(n, now[n]) != now[n]]:
            if first[name] != name:  # from here on it has a sum of its own
                gatherer.sums[name] = copy.deepcopy(gatherer.sums[first[name]])
            now[name] = name
        first = now
        for name in [n for n in names if first[n] == n]:
            _take(gatherer, seen, weights[name], outputs)
    return gatherer, first


def _every(source: Source, wanted: Iterable[str | Statistic]) -> dict[str, Statistic]:
    """What is collected: with two networks also what least squares reads towards the dense one."""
    every = resolved(wanted)
    if source.paired and "gram" in every:
        return resolved([*every.values(), *TOWARDS_DENSE])
    return every


def _take(gatherer: Gatherer, seen: Pass, weight: Weight, outputs: bool) -> None:
    """Add what a layer saw in one pass."""
    if seen.pruned is None:
        for inputs in seen.dense[weight.name]:
            gatherer.inputs(weight, inputs)
    else:
        for before, inputs in zip(seen.dense[weight.name], seen.pruned[weight.name], strict=True):
            gatherer.both(weight, before, inputs)
    for answer in seen.outputs[weight.name] if outputs else ():
        gatherer.outputs(weight, answer)


def _first_alike(seen: Pass, weights: Mapping[str, Weight]) -> dict[str, str]:
    """For each layer the first one that took the same tensors, and reads them in the same way."""
    found: dict[str, str] = {}
    known: dict[tuple[object, ...], str] = {}
    for name, weight in weights.items():
        found[name] = name
        if isinstance(weight.view, LinearView) and weight.source.groups == 1:
            streams = (seen.dense[name], [] if seen.pruned is None else seen.pruned[name])
            key = tuple(id(tensor) for stream in streams for tensor in stream)
            found[name] = known.setdefault(key, name) if key else name
    return found
