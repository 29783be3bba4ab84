"""The mean square of every input."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Vectors
from prunus.layer import Layer

__all__ = ["Diag"]


@dataclass(frozen=True)
class Diag:
    """E[x²] over samples and positions, (in,) or (groups, in)."""

    name: ClassVar[str] = "diag"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        value = reading.values.square().sum(0)
        return value if total is None else total + value

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    def finish(self, total: Tensor, count: int) -> Tensor:
        return total / count

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
