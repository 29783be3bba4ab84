"""The diagonal of the loss's Gauss-Newton matrix."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, SampleSlopes, Statistic
from prunus.calibration.statistics.squared import squared_gradients
from prunus.check import unknown
from prunus.layer import Layer

__all__ = ["LOSSES", "Curvature", "Curved"]

Curved = Literal["cross-entropy", "squared-error"]
LOSSES = ("cross-entropy", "squared-error")


@dataclass(frozen=True)
class Curvature(Statistic):
    """D = E_n (∂F/∂W)ᵀ ∇²ℓ(F) (∂F/∂W), weight by weight, (out, in); no label enters.

    Exactly ∂²/∂w² of the mean loss where every non-linearity is piecewise linear (ReLU, max
    pooling, batch norm in evaluation) and the weight is used in one layer; for smooth activations
    a positive approximation. Positions of a sequence are outputs of separate softmaxes and add up.
    One backward pass per class and position, or 64 with random signs where these are more than 64
    (it is then unbiased).

    Attributes:
        loss: "cross-entropy" of a softmax, or the "squared-error" Σ_o (F_o − y_o)².

    References:
        LeCun, Denker, Solla (1989), Optimal brain damage, Eq. 4, whose rule keeps only the diagonal
        of the second derivatives from layer to layer; this one keeps all of them.
    """

    loss: Curved = "cross-entropy"
    name: ClassVar[str] = "curvature"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    @property
    def reads(self) -> Reads:
        """Gradients of single samples for the columns of a root of ∇²ℓ."""
        signal: Literal["softmax", "square"] = (
            "softmax" if self.loss == "cross-entropy" else "square"
        )
        return Reads(source="slopes", axis="out", signal=signal)

    def add(self, total: Tensor | None, reading: SampleSlopes, layer: Layer) -> Tensor:
        value = squared_gradients(reading)
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide
