"""SynFlow: the flow of all paths through each weight, without data."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.protocol import Score

__all__ = ["SynFlow", "synflow"]


def synflow(
    weight: Float[Tensor, "out in"], flow: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """|w| · ∂R/∂|w|, the share of the flow R = 1ᵀ Π|W| 1 that passes through w.

    The scores of a layer that all paths cross sum to R, so they are conserved from layer to layer,
    and pruning the smallest in many rounds never empties a layer before all others are at one
    path (Tanaka et al., Theorem 3).

    Args:
        weight: w at initialisation; zero where an earlier round removed it.
        flow: ∂R/∂|w| in float64.

    Returns:
        scores ≥ 0, float64.

    References:
        Tanaka et al. (2020), Pruning neural networks without any data by iteratively conserving
        synaptic flow, Algorithm 1. Biases are set to zero here, so that conservation is exact.
    """
    return weight.to(flow.dtype).abs() * flow


@dataclass(frozen=True)
class SynFlow(Score):
    """|w| · ∂R/∂|w|; for nodes, summed over a class's weights."""

    side: ClassVar[str] = "both"
    reduction: ClassVar[str] = "sum"
    statistics: ClassVar[tuple[str, ...]] = ("flow",)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Scores, float64."""
        layer.require("flow")
        assert layer.flow is not None  # just required
        return synflow(layer.weight, layer.flow)
