"""How often an output is nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["OutputZeros"]


@dataclass(frozen=True)
class OutputZeros(Statistic):
    """Share of a layer's outputs that are 0 over samples and positions, (out,).

    The published place of APoZ is right behind the activation, where `zeros` of the consumers'
    inputs counts what pooling has left.

    Attributes:
        relu: count outputs that a ReLU behind the layer turns to 0, z <= 0; False counts those that
            are exactly 0 as they leave the layer.

    References:
        Hu et al. (2016), Network trimming, Eq. 1.
    """

    relu: bool = True
    name: ClassVar[str] = "output_zeros"
    reads: ClassVar[Reads] = Reads(source="outputs", axis="out")

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        nothing = reading.values <= 0 if self.relu else reading.values == 0
        value = nothing.sum(0).to(torch.float64).flatten()
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out
