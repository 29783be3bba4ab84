"""How often an input is nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["Zeros"]


@dataclass(frozen=True)
class Zeros(Statistic):
    """Share of inputs that are exactly 0, (in,) or (groups, in)."""

    name: ClassVar[str] = "zeros"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        value = (reading.values == 0).sum(0).to(torch.float64)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
