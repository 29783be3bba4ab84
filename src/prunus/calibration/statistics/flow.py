"""The flow along all paths through a weight."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Matrix, Reads, Statistic
from prunus.layer import Layer

__all__ = ["Flow"]


@dataclass(frozen=True)
class Flow(Statistic):
    """∂R/∂|W| of the flow R along all paths, (out, in); see `path_flow`."""

    name: ClassVar[str] = "flow"
    reads: ClassVar[Reads] = Reads(source="weights", axis="out", merges=False)

    def add(self, total: Tensor | None, reading: Matrix, layer: Layer) -> Tensor:
        return reading.values if total is None else total + reading.values

    def finish(self, total: Tensor, count: int) -> Tensor:
        return total

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide
