"""How much a layer's outputs vary."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["OutputVariance"]


@dataclass(frozen=True)
class OutputVariance(Statistic):
    """E z² − (E z)² of a layer's outputs z over samples and positions, (out,).

    The sums are of z and z² in float64: a variance below 1e-16 of the mean square is lost in them.
    """

    name: ClassVar[str] = "output_variance"
    reads: ClassVar[Reads] = Reads(source="outputs", axis="out")

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        moments = [reading.total.flatten(), reading.values.square().sum(0).flatten()]
        value = torch.stack(moments, dim=1)
        return value if total is None else total + value

    def finish(self, total: Tensor, count: int) -> Tensor:
        mean, square = (total / count).unbind(1)
        return (square - mean.square()).clamp(min=0)

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return 2 * out
