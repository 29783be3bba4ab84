"""The statistics of one scope's layers, from the passes of a source."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from prunus.calibration.gather import Gatherer
from prunus.calibration.sequential import TOWARDS_DENSE, carried
from prunus.calibration.statistics import Statistic, resolved
from prunus.layer import Layer
from prunus.scopes.source import Source
from prunus.weights import weight_at

__all__ = ["scope_layers"]


def scope_layers(
    source: Source,
    names: Sequence[str],
    *,
    base: Mapping[str, Layer],
    model: nn.Module,
    wanted: Iterable[str | Statistic],
) -> dict[str, Layer]:
    """Layers with the statistics of a scope, which go when the answer goes.

    Where the source has a network that is being pruned, the statistics are those of its inputs x
    (and outputs); where the Gram matrix is among them, `cross` is E[x_dense xᵀ], and `dense_gram`
    and `dense_mean` are the dense network's. Weights are those of `base`, and so are statistics of
    the whole network, such as gradients.

    Args:
        source: of the inputs; read once.
        names: the layers.
        base: the layers of the dense network.
        model: a network with their modules.
        wanted: statistics, by name or as instances.

    Raises:
        ValueError: a layer never ran on the data, or its inputs are NaN or infinite (it is named).
    """
    every = resolved(wanted)
    if source.paired and "gram" in every:
        every = resolved([*every.values(), *TOWARDS_DENSE])
    if not any(s.reads.sequential for s in every.values()):
        return {name: base[name] for name in names}  # nothing that a pass would show
    weights = {name: weight_at(model, name) for name in names}
    gatherer = Gatherer(base, {key: s for key, s in every.items() if s.reads.sequential})
    outputs = bool(gatherer.reading("outputs"))
    for seen in source.passes(names, outputs=outputs):
        gatherer.padding = seen.padding
        for name, weight in weights.items():
            if seen.pruned is None:
                for inputs in seen.dense[name]:
                    gatherer.inputs(weight, inputs)
            else:
                for before, inputs in zip(seen.dense[name], seen.pruned[name], strict=True):
                    gatherer.both(weight, before, inputs)
            for answer in seen.outputs[name] if outputs else ():
                gatherer.outputs(weight, answer)
    return {name: carried(base[name], gatherer, every, base[name]) for name in names}
