"""The mean of a layer's inputs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["Mean"]


@dataclass(frozen=True)
class Mean(Statistic):
    """E[x] over samples and positions, (in,) or (groups, in)."""

    name: ClassVar[str] = "mean"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        return reading.total if total is None else total + reading.total

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
