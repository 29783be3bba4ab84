"""How the network's outputs answer to closing several channel classes at once."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import ClassSlopes, Reads, Statistic
from prunus.layer import Layer

__all__ = ["TaylorGram"]


@dataclass(frozen=True)
class TaylorGram(Statistic):
    """M = E Σ_o v_o v_oᵀ over samples, (classes, classes), v_o the slopes of output o.

    v_{o,c}(n) = ∂F_o/∂a_c at a = 1, a_c a gate on class c where the consumers read it: to first
    order (a − 1)ᵀ M (a − 1) is the mean squared change of the outputs when the classes are scaled
    by a. Consumers add up before the product, so cross terms between them count.

    References:
        Ye et al. (2020), Greedy optimization provably wins the lottery, with the loss of imitation
        at the network's outputs, to first order.
    """

    name: ClassVar[str] = "taylor_gram"
    reads: ClassVar[Reads] = Reads(source="classes", axis="out", signal="output")

    def add(self, total: Tensor | None, reading: ClassSlopes, layer: Layer) -> Tensor:
        value = reading.values.T @ reading.values
        return value if total is None else total + value

    def finish(self, total: Tensor, count: int) -> Tensor:
        return (total + total.T) / (2 * count)

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return wide**2
