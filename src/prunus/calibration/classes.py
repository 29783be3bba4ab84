"""Which columns of the consumers a group's channel classes own, and the slope along each class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.calibration.statistics import SampleSlopes
from prunus.coupling import Group
from prunus.layer import Layer

__all__ = ["by_sample", "column_slopes", "columns", "read_raw"]


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


def read_raw(group: Group) -> list[str]:
    """Parameters without a layer that read a group's classes; nothing shows what they read."""
    return [slot.layer for slot in group.slots if slot.role == "in" and slot.layer in group.raw]


def column_slopes(reading: SampleSlopes, layer: Layer) -> Float[Tensor, "samples in"]:
    """Σ over outputs of W ∘ ∂Q_n/∂W for every sample n: the slope along a gate on each column.

    A channel's gate sits where the layer reads it, so Σ over positions of x ∘ (Wᵀ slope) is the
    same number, without the gradient of the weights.
    """
    rows = layer.weight.reshape(layer.groups, -1, layer.weight.shape[1]).to(reading.slopes.dtype)
    back = torch.einsum("npgo,goi->npgi", reading.slopes, rows)
    return (reading.inputs.to(torch.float64) * back).sum(dim=(1, 2))


def by_sample(
    name: str, slopes: Float[Tensor, "rows in"], size: int
) -> Float[Tensor, "samples in"]:
    """Slopes along gates on a layer's inputs, those of one sample added up, float64.

    Raises:
        ValueError: the rows of single samples cannot be told apart.
    """
    rows = slopes.to(torch.float64).reshape(-1, slopes.shape[-1])
    if len(rows) % size:
        raise ValueError(
            f"Layer {name!r} sees {len(rows)} sequences for {size} samples, so slopes of single "
            f"samples cannot be told apart. Exclude the layer."
        )
    return rows.reshape(size, -1, rows.shape[-1]).sum(1)
