"""Optimal brain damage: what zeroing a weight does to the loss, to second order."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunus.calibration.statistics import Curvature, Statistic
from prunus.check import unknown
from prunus.layer import Layer
from prunus.parts import EDGES
from prunus.scores.protocol import Score

__all__ = ["OBD", "second_order"]

DIAGONALS = ("curvature", "fisher")
LOSSES = ("cross-entropy", "squared-error")


def second_order(
    weight: Float[Tensor, "out in"], diagonal: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """½ w² (D + 10⁻³ mean D), float64: the rise of the loss where the weight goes at a minimum.

    The floor keeps a weight from being called free for want of samples that feel it.

    Args:
        weight: w.
        diagonal: D, second derivatives of the mean loss.
    """
    floor = 1e-3 * diagonal.mean()
    return weight.to(diagonal).square() * (diagonal + floor) / 2


@dataclass(frozen=True)
class OBD(Score):
    """½ w² ∂²L/∂w², in units of the loss, so that layers are compared directly.

    `curvature` is the exact diagonal of the Hessian of a network whose non-linearities are
    piecewise linear, and needs no labels; LeCun's rule keeps only diagonals from layer to layer.
    `fisher` squares the gradients of single samples, which fall short of it where the data are
    fitted, and needs labels. A fitted network shows its curvature on the few hard samples alone, so
    take rounds (`Refine`) rather than one shot, on training samples, 30 of a class or more: with
    few the rounds fit the few hard ones. For nodes the sum over a class's weights would
    leave out what they do together: use `Gate`.

    Attributes:
        of: "curvature" or "fisher".
        loss: of the curvature, "cross-entropy" or "squared-error".

    References:
        LeCun, Denker, Solla (1989), Optimal brain damage, Eq. 5.
    """

    of: Literal["curvature", "fisher"] = "curvature"
    loss: Literal["cross-entropy", "squared-error"] = "cross-entropy"
    serves: ClassVar[tuple[str, ...]] = (EDGES,)

    def __post_init__(self) -> None:
        if self.of not in DIAGONALS:
            raise unknown("diagonal of OBD", self.of, DIAGONALS)
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    @property
    def statistics(self) -> tuple[str | Statistic, ...]:
        """The second derivatives, of the loss that is meant."""
        if self.of == "curvature" and self.loss != "cross-entropy":
            return (Curvature(loss=self.loss),)
        return (self.of,)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Rises of the loss, float64.

        Raises:
            ValueError: no second derivative of the layer differs from zero.
        """
        diagonal = layer.statistic(self.of)
        if not float(diagonal.max()) > 0:
            raise ValueError(
                f"The {self.of} of layer {layer.name!r} is zero for all weights: the loss does not "
                f"feel it on these data. A network that ends in a softmax, or whose outputs are "
                f"certain, has none; pass its logits, or more data."
            )
        return second_order(layer.weight, diagonal)
