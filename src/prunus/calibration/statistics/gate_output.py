"""How the network's outputs answer to closing a channel class."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.calibration.statistics.protocol import ClassSlopes, Reads, Statistic
from prunus.layer import Layer

__all__ = ["GateOutput"]


@dataclass(frozen=True)
class GateOutput(Statistic):
    """E Σ_o t_o² over samples, (classes,), t_o the derivative of output o along a gate; see `Gate`.

    To first order the mean squared change of the outputs when the class goes; no labels enter.
    """

    name: ClassVar[str] = "gate_output"
    reads: ClassVar[Reads] = Reads(source="classes", axis="out", signal="output")

    def add(self, total: Tensor | None, reading: ClassSlopes, layer: Layer) -> Tensor:
        value = reading.values.square().sum(0)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return wide
