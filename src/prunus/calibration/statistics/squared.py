"""Squared gradients of single samples, which several statistics sum."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.calibration.statistics.protocol import SampleSlopes

__all__ = ["squared_gradients"]


def squared_gradients(reading: SampleSlopes) -> Float[Tensor, "out in"]:
    """Σ over samples of (Σ over positions and calls of slope · input)², float64."""
    if reading.inputs.shape[1] == 1:
        slopes, inputs = (
            x[:, 0].to(torch.float64).square() for x in (reading.slopes, reading.inputs)
        )
        total = torch.einsum("ngo,ngi->goi", slopes, inputs)
    else:
        gradients = reading.slopes.permute(0, 2, 3, 1) @ reading.inputs.permute(0, 2, 1, 3)
        total = gradients.to(torch.float64).square().sum(dim=0)
    return total.reshape(-1, total.shape[-1])
