"""GraSP: what removing each weight does to the flow of the gradient."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.protocol import Score

__all__ = ["GraSP", "grasp"]


def grasp(
    weight: Float[Tensor, "out in"], hessian_grad: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """w · (H g): removing w changes the squared gradient by −2 w (H g), so the largest −w (H g) go.

    Args:
        weight: w at initialisation.
        hessian_grad: H g, Hessian times gradient of the loss with the logits over 200.

    Returns:
        scores with the dtype of `hessian_grad`; larger means keep, and they have both signs.

    References:
        Wang et al. (2020), Picking winning tickets before training by preserving gradient flow,
        Eq. 8 with the sign turned, so that larger means keep.
    """
    return weight.to(hessian_grad.dtype) * hessian_grad


@dataclass(frozen=True)
class GraSP(Score):
    """w · (H g); for nodes, summed over a class's weights."""

    side: ClassVar[str] = "both"
    reduction: ClassVar[str] = "sum"
    statistics: ClassVar[tuple[str, ...]] = ("hessian_grad",)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Scores, float64."""
        layer.require("hessian_grad")
        assert layer.hessian_grad is not None  # just required
        return grasp(layer.weight, layer.hessian_grad)
