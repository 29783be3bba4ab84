"""Which columns of the consumers a group's channel classes own, and the slope along each class."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.calibration.statistics import SampleSlopes
from prunus.coupling import Group
from prunus.layer import Layer

__all__ = ["column_slopes", "consumer_columns"]


def consumer_columns(
    group: Group, layers: Mapping[str, Layer]
) -> dict[str, Int[Tensor, "classes columns"]]:
    """{consumer: columns of its weight matrix (channels × taps) that each class owns}.

    A consumer that is not among `layers` is left out.
    """
    found = {}
    for slot in group.slots:
        name, _, kind = slot.parameter.rpartition(".")
        if kind != "weight" or slot.role != "in" or name not in group.consumers:
            continue
        if name in layers:
            place = slot.index[slot.unit.argsort(stable=True)].view(group.size, -1)
            taps = torch.arange(layers[name].taps)
            found[name] = (place[..., None] * layers[name].taps + taps).flatten(1)
    return found


def column_slopes(reading: SampleSlopes, layer: Layer) -> Float[Tensor, "samples in"]:
    """Σ over outputs of W ∘ ∂Q_n/∂W for every sample n: the slope along a gate on each column.

    A channel's gate sits where the layer reads it, so Σ over positions of x ∘ (Wᵀ slope) is the
    same number, without the gradient of the weights.
    """
    rows = layer.weight.reshape(layer.groups, -1, layer.weight.shape[1]).to(reading.slopes.dtype)
    back = torch.einsum("npgo,goi->npgi", reading.slopes, rows)
    return (reading.inputs.to(torch.float64) * back).sum(dim=(1, 2))
