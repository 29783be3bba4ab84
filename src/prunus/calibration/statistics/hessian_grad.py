"""The Hessian of the loss times its gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import Matrix, Reads, Statistic
from prunus.layer import Layer

__all__ = ["HessianGrad"]


@dataclass(frozen=True)
class HessianGrad(Statistic):
    """H g of the mean loss over all data, logits over 200, (out, in); see `hessian_gradients`."""

    name: ClassVar[str] = "hessian_grad"
    reads: ClassVar[Reads] = Reads(source="hessian", axis="out", merges=False)

    def add(self, total: Tensor | None, reading: Matrix, layer: Layer) -> Tensor:
        return reading.values if total is None else total + reading.values

    def finish(self, total: Tensor, count: int) -> Tensor:
        return total

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide
