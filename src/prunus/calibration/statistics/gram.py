"""The second moment of a layer's inputs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.second_moment import add_second_moment, mirror
from prunus.calibration.statistics.protocol import Reads, Statistic, Vectors
from prunus.layer import Layer

__all__ = ["Gram"]


@dataclass(frozen=True)
class Gram(Statistic):
    """G = E[x xᵀ] over samples and positions, (in, in) or (groups, in, in).

    The sums hold the upper triangle; what stands below it has no meaning.
    """

    name: ClassVar[str] = "gram"
    reads: ClassVar[Reads] = Reads(
        source="inputs", axis="group", covers=("diag",), inputs_only=True
    )

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        if total is None:
            groups, wide = reading.total.shape
            total = reading.values.new_zeros(groups, wide, wide)
        add_second_moment(total, reading.values)
        return total

    def finish(self, total: Tensor, count: int) -> Tensor:
        return mirror(total).div_(count)

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return groups * wide**2
