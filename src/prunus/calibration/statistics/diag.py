"""The mean square of every input."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["Diag"]


@dataclass(frozen=True)
class Diag(Statistic):
    """E[x²] over samples and positions, (in,) or (groups, in)."""

    name: ClassVar[str] = "diag"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        value = reading.values.square().sum(0)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
