"""How large a layer's inputs are."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["Absolute"]


@dataclass(frozen=True)
class Absolute(Statistic):
    """E|x| over samples and positions, (in,) or (groups, in); after a ReLU the mean."""

    name: ClassVar[str] = "absolute"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        value = reading.values.abs().sum(0, dtype=torch.float64)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
