"""The second moment between the dense model's inputs and the pruned model's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Pair, Reads, Statistic
from prunus.layer import Layer

__all__ = ["Cross"]


@dataclass(frozen=True)
class Cross(Statistic):
    """E[x_dense xᵀ], shaped as `gram`, where the inputs x come from a pruned model."""

    name: ClassVar[str] = "cross"
    reads: ClassVar[Reads] = Reads(source="pair", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Pair, layer: Layer) -> Tensor:
        dense = reading.dense.values.transpose(0, 1)
        pruned = reading.pruned.values.transpose(0, 1)
        value = dense.transpose(1, 2) @ pruned
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide**2
