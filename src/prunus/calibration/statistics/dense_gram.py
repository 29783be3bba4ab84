"""The second moment of the dense model's inputs, beside the pruned model's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.second_moment import add_second_moment, mirror
from prunus.calibration.statistics.protocol import Pair, Reads, Statistic
from prunus.layer import Layer

__all__ = ["DenseGram"]


@dataclass(frozen=True)
class DenseGram(Statistic):
    """E[x_dense x_denseᵀ], shaped as `gram`, beside `cross`."""

    name: ClassVar[str] = "dense_gram"
    reads: ClassVar[Reads] = Reads(source="pair", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Pair, layer: Layer) -> Tensor:
        if total is None:
            groups, wide = reading.dense.total.shape
            total = reading.dense.values.new_zeros(groups, wide, wide)
        add_second_moment(total, reading.dense.values)
        return total

    def finish(self, total: Tensor, count: int) -> Tensor:
        return mirror(total) / count

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide**2
