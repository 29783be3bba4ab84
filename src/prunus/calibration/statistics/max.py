"""The largest input in magnitude."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Vectors
from prunus.layer import Layer

__all__ = ["Max"]


@dataclass(frozen=True)
class Max:
    """max |x| over samples and positions, (in,) or (groups, in)."""

    name: ClassVar[str] = "max"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group", inputs_only=True)

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        top = reading.values.abs().amax(0)
        return top if total is None else torch.maximum(total, top)

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other)

    def finish(self, total: Tensor, count: int) -> Tensor:
        return total

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide
