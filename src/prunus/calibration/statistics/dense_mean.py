"""The mean of the dense model's inputs, beside the pruned model's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Pair, Reads, Statistic
from prunus.layer import Layer

__all__ = ["DenseMean"]


@dataclass(frozen=True)
class DenseMean(Statistic):
    """E[x_dense], shaped as `mean`, beside `cross`."""

    name: ClassVar[str] = "dense_mean"
    reads: ClassVar[Reads] = Reads(source="pair", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Pair, layer: Layer) -> Tensor:
        dense = reading.dense.total
        return dense if total is None else total + dense

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
