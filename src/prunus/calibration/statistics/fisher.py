"""The squared gradient of the loss, sample by sample."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, SampleSlopes, Statistic
from prunus.calibration.statistics.squared import squared_gradients
from prunus.layer import Layer

__all__ = ["Fisher"]


@dataclass(frozen=True)
class Fisher(Statistic):
    """E (∂L_n/∂W)² over samples n, (out, in): the diagonal of the empirical Fisher matrix.

    L_n is what sample n adds to the loss, of which the caller's is the mean; gradients are squared
    before they are averaged. Where the data are fitted it is far below the loss's curvature, for
    which `curvature` stands.
    """

    name: ClassVar[str] = "fisher"
    reads: ClassVar[Reads] = Reads(source="slopes", axis="out", signal="loss")

    def add(self, total: Tensor | None, reading: SampleSlopes, layer: Layer) -> Tensor:
        value = squared_gradients(reading)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide
