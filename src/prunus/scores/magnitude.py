"""The absolute value of a weight."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.classes import check_reduction
from prunus.scores.protocol import Score

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Score):
    """|W|; for nodes, its sum or Euclidean norm over a class's weights.

    Attributes:
        side: for nodes, the weights that count: the outgoing ones in all consumers, the incoming
            ones in the producers, or both.
        reduction: for nodes, "sum" (L1 norm), "l2", or another of `prunus.scores.REDUCTIONS`.

    References:
        Han et al. (2015), Learning both weights and connections for efficient neural networks.
        Mariet and Sra (2016), Diversity networks, for the importance of a node.
        Li et al. (2017), Pruning filters for efficient ConvNets, with side="producer".
    """

    side: Literal["consumer", "producer", "both"] = "consumer"
    reduction: Literal["sum", "l2", "mean", "max", "abs_sum"] = "sum"
    statistics: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_reduction(self.side, self.reduction)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Absolute weights, in the shape and dtype of the weight."""
        return layer.weight.abs()
