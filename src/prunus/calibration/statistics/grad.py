"""The gradient of the loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Matrix, Reads, Statistic
from prunus.layer import Layer

__all__ = ["Grad"]


@dataclass(frozen=True)
class Grad(Statistic):
    """E[∂L/∂W] over samples, sign kept, (out, in)."""

    name: ClassVar[str] = "grad"
    reads: ClassVar[Reads] = Reads(source="gradient", axis="out")

    def add(self, total: Tensor | None, reading: Matrix, layer: Layer) -> Tensor:
        return reading.values if total is None else total + reading.values

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide
