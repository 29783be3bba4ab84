"""How much the network's outputs move with a weight."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, SampleSlopes, Statistic
from prunus.calibration.statistics.squared import squared_gradients
from prunus.layer import Layer

__all__ = ["Sensitivity"]


@dataclass(frozen=True)
class Sensitivity(Statistic):
    """E Σ_o (∂F_o/∂W)² over samples, summed over the outputs o, (out, in).

    One backward pass per output, or 64 random sign vectors where there are more than 64 outputs
    (it is then unbiased).
    """

    name: ClassVar[str] = "sensitivity"
    reads: ClassVar[Reads] = Reads(source="slopes", axis="out", signal="output")

    def add(self, total: Tensor | None, reading: SampleSlopes, layer: Layer) -> Tensor:
        value = squared_gradients(reading)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide
