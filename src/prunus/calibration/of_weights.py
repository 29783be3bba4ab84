"""What the weights tell by themselves: statistics without a pass over the data."""

from collections.abc import Mapping, Sequence

from torch import nn

from prunus.calibration.batches import Batches, parts
from prunus.calibration.flow import ones_like_input, path_flow
from prunus.calibration.statistics import Matrix, Statistic
from prunus.calibration.sums import Sums
from prunus.hints import Batch
from prunus.layer import Layer
from prunus.weights import Weight, weight_at

__all__ = ["flows", "layers_of_weights", "reads_weights"]


def flows(model: nn.Module, weights: Mapping[str, Weight], batch: Batch) -> dict[str, Matrix]:
    """∂R/∂|W| of the flow R along all paths, for every weight.

    Args:
        model: the network; it is not changed.
        weights: its weights, by name.
        batch: whose first sample has the form of an input.
    """
    absolute = {weight.path: weight.parameter.detach().abs() for weight in weights.values()}
    device = next(iter(absolute.values())).device
    _, flow = path_flow(model, absolute, ones_like_input(batch).to(device))
    return {name: Matrix(weight.matrix(flow[weight.path])) for name, weight in weights.items()}


def reads_weights(statistics: Mapping[str, Statistic]) -> bool:
    """Whether there are statistics, and none of them reads data."""
    return bool(statistics) and all(s.reads.source == "weights" for s in statistics.values())


def layers_of_weights(
    model: nn.Module, names: Sequence[str], statistics: Mapping[str, Statistic], data: Batches
) -> dict[str, Layer]:
    """The layers of a network with statistics that read its weights alone, as `calibrate` has them.

    Args:
        model: the network, which nobody else runs meanwhile.
        names: of layers that are known to run.
        statistics: by name; see `reads_weights`.
        data: batches, of which the form of a sample is taken.
    """
    weights = {name: weight_at(model, name) for name in names}
    found = {}
    for name, matrix in flows(model, weights, next(parts(data.peek()))).items():
        layer = weights[name].layer().copied()
        sums = Sums()
        for s in statistics.values():
            sums.put(s, s.add(None, matrix, layer))
        found[name] = sums.layer(layer, statistics, 1, {})
    return found
