"""The loss's second derivative along a gate on a channel class."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from prunus.calibration.statistics.curvature import LOSSES, Curved
from prunus.calibration.statistics.protocol import ClassSlopes, Reads, Statistic
from prunus.check import unknown
from prunus.layer import Layer

__all__ = ["GateCurvature"]


@dataclass(frozen=True)
class GateCurvature(Statistic):
    """E tᵀ ∇²ℓ t over samples, (classes,), t the derivative of the outputs along a gate.

    The Gauss-Newton second derivative of the mean loss along a gate on every class, cross terms
    inside the class included; see `Gate` and `Curvature`.

    Attributes:
        loss: "cross-entropy" of a softmax, or the "squared-error" Σ_o (F_o − y_o)².
    """

    loss: Curved = "cross-entropy"
    name: ClassVar[str] = "gate_curvature"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    @property
    def reads(self) -> Reads:
        """Slopes along the gates for the columns of a root of ∇²ℓ."""
        signal: Literal["softmax", "square"] = (
            "softmax" if self.loss == "cross-entropy" else "square"
        )
        return Reads(source="classes", axis="out", signal=signal)

    def add(self, total: Tensor | None, reading: ClassSlopes, layer: Layer) -> Tensor:
        value = reading.values.square().sum(0)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return wide
