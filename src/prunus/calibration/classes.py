"""Which columns of the consumers a group's channel classes own, and the slope along each class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.calibration.statistics import SampleSlopes
from prunus.coupling import Group
from prunus.layer import Layer

__all__ = ["column_slopes", "columns"]


def columns(group: Group, layer: Layer) -> Int[Tensor, "classes columns"]:
    """Where the classes of a group lie in a consumer's weight matrix (channels × taps)."""
    for slot in group.slots:
        if slot.layer == layer.name and slot.role != "out":
            # All groups of a transposed convolution read alike; the first one's columns count.
            own = slot.index < layer.weight.shape[1] // layer.taps
            index, unit = slot.index[own], slot.unit[own]
            place = index[unit.argsort(stable=True)].view(group.size, -1)
            return (place[..., None] * layer.taps + torch.arange(layer.taps)).flatten(1)
    raise ValueError(f"Layer {layer.name!r} reads none of the channels of group {group.name!r}.")


def column_slopes(reading: SampleSlopes, layer: Layer) -> Float[Tensor, "samples in"]:
    """Σ over outputs of W ∘ ∂Q_n/∂W for every sample n: the slope along a gate on each column.

    A channel's gate sits where the layer reads it, so Σ over positions of x ∘ (Wᵀ slope) is the
    same number, without the gradient of the weights.
    """
    rows = layer.weight.reshape(layer.groups, -1, layer.weight.shape[1]).to(reading.slopes.dtype)
    back = torch.einsum("npgo,goi->npgi", reading.slopes, rows)
    return (reading.inputs.to(torch.float64) * back).sum(dim=(1, 2))
