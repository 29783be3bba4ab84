"""How much the network's outputs move with each output of a layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, SampleSlopes, Statistic
from prunus.layer import Layer

__all__ = ["Slope"]


@dataclass(frozen=True)
class Slope(Statistic):
    """b = E Σ_o Σ_positions (∂F_o/∂z)² of the layer's outputs z, (out,).

    A mean over samples; positions (of a sequence, or of a convolution's map) add up, so that b
    times a mean squared error per position is in units of a sample's outputs. One backward pass per
    output, or 64 random sign vectors where there are more than 64.

    References:
        The output factor of K-FAC's block for one row (Martens & Grosse 2015), with the outputs'
        identity in place of the loss's Hessian.
    """

    name: ClassVar[str] = "slope"
    reads: ClassVar[Reads] = Reads(source="slopes", axis="out", signal="output")

    def add(self, total: Tensor | None, reading: SampleSlopes, layer: Layer) -> Tensor:
        value = reading.slopes.to(torch.float64).square().sum(dim=(0, 1)).flatten()
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out
